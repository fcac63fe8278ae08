package emu

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var be = binary.BigEndian

// A unit is what drives and the changer have in common. Guarded by Library.mu.
type unit struct {
	u       Unit
	serial  string
	pending map[string][]scsi.Code // unit attentions by initiator

	keys       map[string]uint64 // persistent reservations
	holder     string            // initiator; "" nobody
	kind       byte
	generation uint32
}

func newUnit(u Unit, serial string) *unit {
	return &unit{u: u, serial: serial, pending: map[string][]scsi.Code{}, keys: map[string]uint64{}}
}

// attention gives every initiator but one a unit attention.
func (u *unit) attention(c scsi.Code, but string) {
	for who, codes := range u.pending {
		if who != but && len(codes) < 16 {
			u.pending[who] = append(codes, c)
		}
	}
}

func (u *unit) reset() {
	u.keys, u.holder, u.kind, u.generation = map[string]uint64{}, "", 0, 0
	for who := range u.pending {
		u.pending[who] = []scsi.Code{scsi.CodePowerOn}
	}
}

// A nexus is one initiator's connection to a unit.
type nexus struct {
	lib       *Library
	initiator string
	unit      *unit
	drive     *drive // nil: the changer
	closed    bool
}

// An outcome is what a command came to.
type outcome struct {
	status scsi.Status
	sense  scsi.Sense
	data   []byte
}

func good(data ...byte) outcome { return outcome{data: data} }

func check(k scsi.SenseKey, c scsi.Code) outcome {
	return outcome{status: scsi.CheckCondition, sense: scsi.Sense{Key: k, Code: c}}
}

var badField = check(scsi.IllegalRequest, scsi.CodeInvalidField)

func (n *nexus) Close() error {
	n.lib.mu.Lock()
	defer n.lib.mu.Unlock()
	n.closed = true
	if n.drive != nil {
		delete(n.drive.prevented, n.initiator)
	}
	return nil
}

var errLost = holdfast.Errorf(holdfast.Offline, "talk to the library", "the connection failed")

// Exec implements scsi.Transport.
func (n *nexus) Exec(ctx context.Context, c scsi.Command) (scsi.Result, error) {
	if err := ctx.Err(); err != nil {
		return scsi.Result{}, holdfast.Errorf(holdfast.KindOf(err), "talk to the library", "%w", err)
	}
	o, wait, err := n.locked(c)
	if err != nil {
		return scsi.Result{}, err
	}
	if wait > 0 {
		ch, stop := n.lib.o.Clock.After(wait)
		select {
		case <-ch:
		case <-ctx.Done():
			stop()
			return scsi.Result{}, holdfast.Errorf(holdfast.KindOf(ctx.Err()), "talk to the library", "%w", ctx.Err())
		}
	}
	r := scsi.Result{Status: o.status, In: copy(c.In, o.data)}
	if o.status == scsi.CheckCondition {
		r.Sense = o.sense.Fixed()
	}
	return r, nil
}

func (n *nexus) locked(c scsi.Command) (o outcome, wait time.Duration, err error) {
	l := n.lib
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.closed || len(c.CDB) < 6 {
		return o, 0, errLost
	}
	f := l.fault(n.unit.u, c.CDB[0])
	if f != nil {
		switch f.Do {
		case Answer:
			return outcome{status: scsi.CheckCondition, sense: f.Sense}, 0, nil
		case Conflict:
			return outcome{status: scsi.ReservationConflict}, 0, nil
		case CutBefore:
			l.powerCut()
			return o, 0, errLost
		case LoseCommand:
			return o, 0, errLost
		}
	}
	o, wait = n.run(c)
	if f == nil {
		return o, wait, nil
	}
	switch f.Do {
	case LoseReply:
		return o, 0, errLost
	case CutAfter:
		l.powerCut()
		return o, 0, errLost
	case Defer:
		s := f.Sense
		s.Deferred = true
		n.drive.deferred = &s
		if p := n.drive.at(); p != nil {
			p.objs = p.objs[:p.flushed]
			n.drive.pos = min(n.drive.pos, p.flushed)
		}
	case Rot:
		if len(o.data) > 0 {
			o.data = append([]byte(nil), o.data...)
			o.data[l.rng.IntN(len(o.data))] ^= 1 << l.rng.IntN(8)
		}
	}
	return o, wait, nil
}

// run executes a command in the order of checks that the standard has: attention, reservation, then the command.
func (n *nexus) run(c scsi.Command) (outcome, time.Duration) {
	op := c.CDB[0]
	asks := op == scsi.OpInquiry || op == scsi.OpReportLUNs
	if !asks && op != scsi.OpRequestSense {
		if p := n.unit.pending[n.initiator]; len(p) > 0 {
			n.unit.pending[n.initiator] = p[1:]
			return check(scsi.UnitAttention, p[0]), 0
		}
		if n.drive != nil && n.drive.deferred != nil {
			s := *n.drive.deferred
			n.drive.deferred = nil
			return outcome{status: scsi.CheckCondition, sense: s}, 0
		}
	}
	for _, w := range n.lib.o.Without {
		if n.drive != nil && w == op {
			return check(scsi.IllegalRequest, scsi.CodeInvalidOpcode), 0
		}
	}
	if !asks && n.conflicts(op, c.CDB) {
		return outcome{status: scsi.ReservationConflict}, 0
	}
	switch op {
	case scsi.OpInquiry:
		return n.inquiry(c.CDB), 0
	case scsi.OpRequestSense:
		s := scsi.Sense{}
		if p := n.unit.pending[n.initiator]; len(p) > 0 {
			s, n.unit.pending[n.initiator] = scsi.Sense{Key: scsi.UnitAttention, Code: p[0]}, p[1:]
		}
		return good(s.Fixed()...), 0
	case scsi.OpReportLUNs:
		return good(0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 0
	case scsi.OpPersistentReserveIn:
		return n.reserveIn(c.CDB[1] & 31), 0
	case scsi.OpPersistentReserveOut:
		return n.reserveOut(c.CDB[1]&31, c.CDB[2]&15, c.Out), 0
	}
	if n.drive == nil {
		return n.lib.changer(c), 0
	}
	return n.drive.run(n, c)
}

func (n *nexus) inquiry(cdb []byte) outcome {
	kind, product := byte(scsi.TypeChanger), "VLIB"
	if n.drive != nil {
		kind, product = byte(scsi.TypeTape), "VLTO-8"
	}
	if cdb[1]&1 == 0 {
		b := make([]byte, scsi.InquiryLen)
		b[0], b[1], b[2], b[3], b[4] = kind, 0x80, 6, 2, scsi.InquiryLen-5
		copy(b[8:], fmt.Sprintf("%-8s%-16s%-4s", "HOLDFAST", product, "0001"))
		return good(b...)
	}
	var body []byte
	switch cdb[2] {
	case scsi.PageSupportedVPD:
		body = []byte{0, scsi.PageSerial, scsi.PageIdentification}
	case scsi.PageSerial:
		body = []byte(n.unit.serial)
	case scsi.PageIdentification:
		body = append([]byte{2, 1, 0, byte(8 + len(n.unit.serial))}, "HOLDFAST"+n.unit.serial...)
	default:
		return badField
	}
	return good(append([]byte{kind, cdb[2], 0, byte(len(body))}, body...)...)
}

// conflicts reports whether somebody else's reservation forbids a command.
func (n *nexus) conflicts(op byte, cdb []byte) bool {
	u := n.unit
	if u.holder == "" || u.holder == n.initiator {
		return false
	}
	_, registered := u.keys[n.initiator]
	switch op {
	case scsi.OpRequestSense, scsi.OpPersistentReserveIn, scsi.OpLogSense, scsi.OpReadAttribute, scsi.OpTestUnitReady, scsi.OpReadElementStatus, scsi.OpMaintenanceIn,
		scsi.OpReadBlockLimits, scsi.OpSecurityProtocolIn:
		return false
	case scsi.OpPersistentReserveOut:
		a := cdb[1] & 31
		return a == scsi.ReserveReserve
	case scsi.OpPreventAllow:
		return cdb[4]&1 != 0 && !registered
	}
	switch u.kind {
	case scsi.ReserveWriteRegistrants, scsi.ReserveRegistrants:
		if registered {
			return false
		}
	}
	reads := op == scsi.OpRead6 || op == scsi.OpReadPosition || op == scsi.OpModeSense6 || op == scsi.OpModeSense10
	return !reads || u.kind == scsi.ReserveExclusive || u.kind == scsi.ReserveRegistrants
}

func (n *nexus) reserveIn(action byte) outcome {
	u := n.unit
	b := be.AppendUint32(nil, u.generation)
	switch action {
	case scsi.ReserveReadKeys:
		b = be.AppendUint32(b, uint32(8*len(u.keys)))
		for _, k := range u.keys {
			b = be.AppendUint64(b, k)
		}
	case scsi.ReserveReadReservation:
		if u.holder == "" {
			return good(be.AppendUint32(b, 0)...)
		}
		b = be.AppendUint64(be.AppendUint32(b, 16), u.keys[u.holder])
		b = append(b, 0, 0, 0, 0, 0, u.kind, 0, 0)
	default:
		return badField
	}
	return good(b...)
}

func (n *nexus) reserveOut(action, kind byte, p []byte) outcome {
	u := n.unit
	if len(p) != 24 {
		return check(scsi.IllegalRequest, scsi.CodeParameterLength)
	}
	key, other := be.Uint64(p), be.Uint64(p[8:])
	mine, registered := u.keys[n.initiator]
	if action != scsi.ReserveRegisterIgnore && (registered && mine != key || !registered && (action != scsi.ReserveRegister || key != 0)) {
		return outcome{status: scsi.ReservationConflict}
	}
	switch action {
	case scsi.ReserveRegister, scsi.ReserveRegisterIgnore:
		u.generation++
		if other != 0 {
			u.keys[n.initiator] = other
			return good()
		}
		delete(u.keys, n.initiator)
		n.release()
	case scsi.ReserveReserve:
		if u.holder == n.initiator && u.kind != kind {
			return outcome{status: scsi.ReservationConflict}
		}
		if kind != scsi.ReserveWriteExclusive && kind != scsi.ReserveExclusive && kind != scsi.ReserveWriteRegistrants && kind != scsi.ReserveRegistrants {
			return badField
		}
		u.holder, u.kind = n.initiator, kind
	case scsi.ReserveRelease:
		n.release()
	case scsi.ReserveClear:
		u.generation++
		u.keys, u.holder = map[string]uint64{}, ""
		u.attention(scsi.CodeReservPreempted, n.initiator)
	case scsi.ReservePreempt, scsi.ReservePreemptAbort:
		u.generation++
		for who, k := range u.keys {
			if k != other || who == n.initiator {
				continue
			}
			delete(u.keys, who)
			u.pending[who] = append(u.pending[who], scsi.CodeRegistrPreempted)
			if u.holder == who {
				u.holder, u.kind = n.initiator, kind
			}
		}
	default:
		return badField
	}
	return good()
}

func (n *nexus) release() {
	if n.unit.holder == n.initiator {
		n.unit.holder = ""
	}
}
