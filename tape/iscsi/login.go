package iscsi

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/md5" //nolint:gosec // the one algorithm that every target has; RFC 7143 requires it
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// Bounds of negotiation.
const (
	maxRounds  = 16      // of questions and answers in a login
	maxText    = 1 << 20 // bytes of an answer to a discovery
	maxTargets = 1 << 12 // of a portal
	burst      = 1 << 20 // what we would like in one burst
	chapMax    = 1024    // bytes of a challenge or response
)

// params is what both sides agreed on.
type params struct {
	digests
	segment    int // most bytes of data in a unit to the target
	firstBurst int
	maxBurst   int
	immediate  bool
}

// A login is one connection being logged in.
type login struct {
	o        *Options
	conn     net.Conn
	r        *bufio.Reader
	buf      []byte
	isid     [6]byte
	discover bool
	tsih     uint16
	cmdSN    uint32
	expStat  uint32
	maxCmd   uint32
	itt      uint32
	params
}

const opLog = "log in to iSCSI target"

// run goes through the stages of a login.
func (l *login) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() }) // ends a read that hangs
	defer stop()
	err := l.stages()
	if ctx.Err() != nil {
		return holdfast.Errorf(holdfast.KindOf(ctx.Err()), opLog, "%w", ctx.Err())
	}
	return err
}

func (l *login) stages() error {
	l.params = params{segment: 8192, firstBurst: 64 << 10, maxBurst: 256 << 10, immediate: true}
	keys := [][2]string{{"InitiatorName", l.o.Initiator}, {"SessionType", "Normal"}, {"TargetName", l.o.Target}}
	if l.discover {
		keys = [][2]string{{"InitiatorName", l.o.Initiator}, {"SessionType", "Discovery"}}
	}
	if err := l.security(keys); err != nil {
		return err
	}
	yes := func(b bool) string {
		if b {
			return "CRC32C"
		}
		return "None"
	}
	keys = [][2]string{{"HeaderDigest", yes(l.o.HeaderDigest)}, {"DataDigest", yes(l.o.DataDigest)}, {"MaxRecvDataSegmentLength", strconv.Itoa(maxSegment)},
		{"DefaultTime2Wait", "2"}, {"DefaultTime2Retain", "0"}, {"ErrorRecoveryLevel", "0"}}
	if !l.discover {
		keys = append(keys, [][2]string{{"InitialR2T", "Yes"}, {"ImmediateData", "Yes"}, {"MaxBurstLength", strconv.Itoa(burst)}, {"FirstBurstLength", strconv.Itoa(burst)},
			{"MaxConnections", "1"}, {"MaxOutstandingR2T", "1"}, {"DataPDUInOrder", "Yes"}, {"DataSequenceInOrder", "Yes"}}...)
	}
	for range maxRounds {
		got, done, err := l.round(1, 3, keys)
		if err != nil {
			return err
		}
		if err := l.agree(got); err != nil {
			return err
		}
		if done {
			return nil
		}
		keys = nil
	}
	return holdfast.Errorf(holdfast.Invalid, opLog, "the target does not come to an end")
}

// security is the stage in which both sides say who they are.
func (l *login) security(keys [][2]string) error {
	method := "None"
	if l.o.User != "" {
		method = "CHAP"
	}
	got, done, err := l.round(0, 1, append(keys, [2]string{"AuthMethod", method}))
	if err != nil || done && method == "None" {
		return err
	}
	if done || got["AuthMethod"] != method {
		if method == "CHAP" {
			return holdfast.Errorf(holdfast.Permission, opLog, "the target does not ask for the secret it was to ask for").
				Advise("set up CHAP on the target, or remove the user from the library's settings")
		}
		return holdfast.Errorf(holdfast.Permission, opLog, "the target wants a user and a secret").Advise("give the library's settings a CHAP user and secret")
	}
	if method == "None" {
		_, _, err = l.round(0, 1, nil)
		return err
	}
	if got, _, err = l.stay(0, [][2]string{{"CHAP_A", "5"}}); err != nil {
		return err
	}
	return l.chap(got)
}

// chap answers the target's challenge and, where a secret of the target is known, challenges it.
func (l *login) chap(got map[string]string) error {
	id, err := strconv.ParseUint(got["CHAP_I"], 0, 8)
	challenge, err2 := chapBytes(got["CHAP_C"])
	if err != nil || err2 != nil || got["CHAP_A"] != "5" || len(challenge) == 0 {
		return holdfast.Errorf(holdfast.Permission, opLog, "the target's challenge cannot be read")
	}
	keys := [][2]string{{"CHAP_N", l.o.User}, {"CHAP_R", "0x" + hex.EncodeToString(chapSum(byte(id), l.o.Secret, challenge))}}
	mine, myID := make([]byte, 16), byte(id)^0x5a
	if l.o.TargetSecret != "" {
		_, _ = rand.Read(mine) // never fails
		keys = append(keys, [2]string{"CHAP_I", strconv.Itoa(int(myID))}, [2]string{"CHAP_C", "0x" + hex.EncodeToString(mine)})
	}
	got, done, err := l.round(0, 1, keys)
	if err != nil {
		return err
	}
	if l.o.TargetSecret == "" {
		if !done {
			return holdfast.Errorf(holdfast.Permission, opLog, "the target does not accept the secret")
		}
		return nil
	}
	answer, err := chapBytes(got["CHAP_R"])
	if err != nil || !hmac.Equal(answer, chapSum(myID, l.o.TargetSecret, mine)) {
		return holdfast.Errorf(holdfast.Permission, opLog, "the target could not prove that it is the target").Advise("check the portal's address and the target's secret")
	}
	if !done {
		_, _, err = l.round(0, 1, nil)
	}
	return err
}

func chapSum(id byte, secret string, challenge []byte) []byte {
	h := md5.New() //nolint:gosec // see the import
	_, _ = h.Write([]byte{id})
	_, _ = h.Write([]byte(secret))
	_, _ = h.Write(challenge)
	return h.Sum(nil)
}

// chapBytes reads a binary value: 0x and hexadecimal, or 0b and base64.
func chapBytes(s string) ([]byte, error) {
	if len(s) < 2 || len(s) > 2*chapMax+2 {
		return nil, holdfast.Errorf(holdfast.Invalid, opLog, "a binary value of %d characters", len(s))
	}
	switch s[:2] {
	case "0x", "0X":
		return hex.DecodeString(s[2:])
	case "0b", "0B":
		return base64.StdEncoding.DecodeString(s[2:])
	}
	return nil, holdfast.Errorf(holdfast.Invalid, opLog, "a binary value without its mark")
}

// stay asks in a stage without leaving it.
func (l *login) stay(stage byte, keys [][2]string) (map[string]string, bool, error) {
	return l.ask(stage<<2, keys)
}

// round asks in a stage and offers to go on to the next; done says that the target agrees.
func (l *login) round(stage, next byte, keys [][2]string) (map[string]string, bool, error) {
	return l.ask(final|stage<<2|next, keys)
}

// ask sends login keys and collects the answer.
func (l *login) ask(flags byte, keys [][2]string) (map[string]string, bool, error) {
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "%s=%s\x00", k[0], k[1])
	}
	p := pdu{data: []byte(b.String())}
	p.h[0], p.h[1] = opLogin|immediate, flags
	copy(p.h[8:], l.isid[:])
	be.PutUint16(p.h[14:], l.tsih)
	p.put(16, l.itt)
	p.put(24, l.cmdSN)
	p.put(28, l.expStat)
	var text []byte
	for range maxRounds {
		if err := writePDU(l.conn, &p, digests{}); err != nil {
			return nil, false, lost(err)
		}
		r, err := readPDU(l.r, digests{}, l.buf)
		if err != nil {
			return nil, false, lost(err)
		}
		if r.op() != opLoginResp {
			return nil, false, holdfast.Errorf(holdfast.Corrupt, opLog, "unit %02xh instead of an answer", r.op())
		}
		if err := loginStatus(r.h[36], r.h[37]); err != nil {
			return nil, false, err
		}
		l.tsih, l.expStat, l.maxCmd = be.Uint16(r.h[14:]), r.u32(24)+1, r.u32(32)
		if text = append(text, r.data...); len(text) > maxText {
			return nil, false, holdfast.Errorf(holdfast.Corrupt, opLog, "too long an answer")
		}
		if r.h[1]&0x40 == 0 { // not continued
			return parseText(text), r.h[1]&final != 0, nil
		}
		p.data = nil
		p.put(28, l.expStat)
	}
	return nil, false, holdfast.Errorf(holdfast.Corrupt, opLog, "too long an answer")
}

// parseText reads key=value pairs that end with zero bytes.
func parseText(b []byte) map[string]string {
	out := map[string]string{}
	for _, kv := range strings.Split(string(b), "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			out[k] = v
		}
	}
	return out
}

// loginStatus turns the status of a login answer into an error.
func loginStatus(class, detail byte) error {
	switch {
	case class == 0:
		return nil
	case class == 1:
		return holdfast.Errorf(holdfast.Offline, opLog, "the target has moved to another address").Advise("discover the portal's targets again")
	case class == 2 && (detail == 1 || detail == 2):
		return holdfast.Errorf(holdfast.Permission, opLog, "the target refuses the user, the secret or this initiator's name").Advise("check the CHAP user and secret, and the target's list of initiators")
	case class == 2 && detail == 3:
		return holdfast.Errorf(holdfast.NotExist, opLog, "there is no such target at the portal").Advise("list the portal's targets")
	case class == 2:
		return holdfast.Errorf(holdfast.Invalid, opLog, "the target refuses the login with status %d/%d", class, detail)
	}
	return holdfast.Errorf(holdfast.Transient, opLog, "the target cannot log in now, status %d/%d", class, detail)
}

// agree takes over what the target answered, within what was offered.
func (l *login) agree(got map[string]string) error {
	number := func(key string, into *int, least, most int) error {
		s, ok := got[key]
		if !ok {
			return nil
		}
		n, err := strconv.ParseUint(s, 0, 32)
		if err != nil || int(n) < least {
			return holdfast.Errorf(holdfast.Invalid, opLog, "the target says %s=%q", key, s)
		}
		*into = min(int(n), most)
		return nil
	}
	if v, ok := got["HeaderDigest"]; ok {
		l.digests.header = v == "CRC32C"
	}
	if v, ok := got["DataDigest"]; ok {
		l.digests.data = v == "CRC32C"
	}
	if l.o.HeaderDigest && got["HeaderDigest"] == "None" || l.o.DataDigest && got["DataDigest"] == "None" {
		return holdfast.Errorf(holdfast.Unsupported, opLog, "the target does not do the checksums that were asked for").Advise("switch digests off in the library's settings")
	}
	if v, ok := got["ImmediateData"]; ok {
		l.immediate = v == "Yes"
	}
	for _, err := range []error{number("MaxRecvDataSegmentLength", &l.segment, 512, 1<<24-1), number("FirstBurstLength", &l.firstBurst, 512, burst), number("MaxBurstLength", &l.maxBurst, 512, burst)} {
		if err != nil {
			return err
		}
	}
	return nil
}

// lost classifies a failed connection.
func lost(err error) error {
	if holdfast.KindOf(err) != holdfast.Internal {
		return err
	}
	return holdfast.Errorf(holdfast.Offline, "talk to iSCSI target", "%w", err).Advise("check that the target is running and can be reached")
}
