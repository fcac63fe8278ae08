package iscsi

import (
	"bufio"
	"context"
	"crypto/rand"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// Options says where a target is and how to log in to it.
type Options struct {
	Portal    string // host:port
	Target    string // the target's name, iqn.…
	Initiator string // our name; must be the same after a restart where reservations are used
	// User and Secret prove who we are. Empty: the target must not ask. TargetSecret has the target prove who it is, too.
	User, Secret, TargetSecret string
	HeaderDigest, DataDigest   bool
	Clock                      clock.Clock // nil: the system's
	// Dial opens the connection; nil: TCP. For tests that break it.
	Dial func(ctx context.Context, portal string) (net.Conn, error)
}

// Times of the session itself. Commands have theirs from scsi.Timeout.
const (
	loginTimeout = 30 * time.Second
	pingEvery    = 30 * time.Second
	pingTimeout  = 15 * time.Second
	abortTimeout = 10 * time.Second
)

// A Session is a login to one target. Methods are safe for concurrent use.
type Session struct {
	o    Options
	isid [6]byte

	connecting sync.Mutex // one login at a time
	mu         sync.Mutex // guards what follows
	live       *conn      // nil: not connected
	closed     bool
}

func (o *Options) fill() error {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, portal string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", portal)
		}
	}
	for _, s := range []string{o.Target, o.Initiator, o.User, o.Secret, o.TargetSecret} {
		if strings.ContainsRune(s, 0) || len(s) > 255 {
			return holdfast.Errorf(holdfast.Invalid, opLog, "a name or secret that is longer than 255 bytes or has a zero byte")
		}
	}
	if o.Initiator == "" || (o.User == "") != (o.Secret == "") || o.TargetSecret != "" && (o.User == "" || o.TargetSecret == o.Secret) {
		return holdfast.Errorf(holdfast.Invalid, opLog, "an initiator's name, both user and secret or neither, and a target's secret that is not ours are needed")
	}
	return nil
}

// Dial logs in to a target.
func Dial(ctx context.Context, o Options) (*Session, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	s := &Session{o: o}
	s.isid[0] = 0x80 // random format
	_, _ = rand.Read(s.isid[1:4])
	if _, err := s.conn(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// connect dials and logs in.
func (s *Session) connect(ctx context.Context, discover bool) (*login, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	after, stop := s.o.Clock.After(loginTimeout)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-after:
			cancel(holdfast.Errorf(holdfast.Offline, opLog, "no answer within %v", loginTimeout))
		case <-done:
		}
	})
	defer func() { close(done); stop(); wg.Wait() }()
	c, err := s.o.Dial(ctx, s.o.Portal)
	if err != nil {
		return nil, lost(err)
	}
	l := &login{o: &s.o, conn: c, r: bufio.NewReaderSize(c, 64<<10), buf: make([]byte, maxSegment+8), isid: s.isid, discover: discover, cmdSN: 1}
	if err := l.run(ctx); err != nil {
		_ = c.Close() // the login's error is the one to tell
		return nil, err
	}
	return l, nil
}

// conn returns the connection, logging in again if it was lost.
func (s *Session) conn(ctx context.Context) (*conn, error) {
	s.connecting.Lock()
	defer s.connecting.Unlock()
	s.mu.Lock()
	c, closed := s.live, s.closed
	s.mu.Unlock()
	if closed {
		return nil, holdfast.Errorf(holdfast.Offline, "talk to iSCSI target", "the session is closed")
	}
	if c != nil && c.alive() {
		return c, nil
	}
	if c != nil {
		c.wg.Wait()
	}
	l, err := s.connect(ctx, false)
	if err != nil {
		return nil, err
	}
	c = newConn(l)
	s.mu.Lock()
	s.live = c
	s.mu.Unlock()
	return c, nil
}

// Close logs out and ends the session. Commands under way fail.
func (s *Session) Close() error {
	s.connecting.Lock()
	defer s.connecting.Unlock()
	s.mu.Lock()
	c := s.live
	s.live, s.closed = nil, true
	s.mu.Unlock()
	if c != nil {
		c.logout()
		c.wg.Wait()
	}
	return nil
}

// LUN returns a logical unit of the target. Closing it does nothing: the session is closed as one.
func (s *Session) LUN(n int) scsi.Transport { return &unit{s, n} }

type unit struct {
	s   *Session
	lun int
}

func (u *unit) Close() error { return nil }

// Exec implements scsi.Transport.
func (u *unit) Exec(ctx context.Context, c scsi.Command) (scsi.Result, error) {
	if len(c.CDB) == 0 || len(c.CDB) > 16 || len(c.In) > 0 && len(c.Out) > 0 {
		return scsi.Result{}, holdfast.Errorf(holdfast.Invalid, "talk to iSCSI target", "a command of %d bytes with data both ways", len(c.CDB))
	}
	conn, err := u.s.conn(ctx)
	if err != nil {
		return scsi.Result{}, err
	}
	return conn.exec(ctx, u.lun, c)
}

// A Target is what a portal offers.
type Target struct {
	Name      string
	Addresses []string // host:port,group
}

// Discover lists the targets of a portal. Options.Target is not used.
func Discover(ctx context.Context, o Options) ([]Target, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	s := &Session{o: o}
	s.isid[0] = 0x80
	_, _ = rand.Read(s.isid[1:4])
	l, err := s.connect(ctx, true)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	defer stop()
	out, err := l.sendTargets()
	if e := l.conn.Close(); err == nil && e != nil && ctx.Err() == nil {
		err = lost(e)
	}
	return out, err
}

// sendTargets asks for the list of targets.
func (l *login) sendTargets() ([]Target, error) {
	const op = "list iSCSI targets"
	p := pdu{data: []byte("SendTargets=All\x00")}
	ttt := uint32(noTag)
	var text []byte
	for range maxRounds * 16 {
		p.h[0], p.h[1] = opText|immediate, final
		p.put(16, 1)
		p.put(20, ttt)
		p.put(24, l.cmdSN)
		p.put(28, l.expStat)
		if err := writePDU(l.conn, &p, l.digests); err != nil {
			return nil, lost(err)
		}
		r, err := readPDU(l.r, l.digests, l.buf)
		if err != nil {
			return nil, lost(err)
		}
		if r.op() != opTextResp {
			return nil, holdfast.Errorf(holdfast.Corrupt, op, "unit %02xh instead of an answer", r.op())
		}
		l.expStat = r.u32(24) + 1
		if text = append(text, r.data...); len(text) > maxText {
			break
		}
		if r.h[1]&final != 0 {
			return parseTargets(text)
		}
		ttt, p.data = r.u32(20), nil
	}
	return nil, holdfast.Errorf(holdfast.Corrupt, op, "too long an answer")
}

func parseTargets(text []byte) ([]Target, error) {
	var out []Target
	for _, kv := range strings.Split(string(text), "\x00") {
		k, v, _ := strings.Cut(kv, "=")
		switch {
		case k == "TargetName" && len(out) == maxTargets:
			return out, holdfast.Errorf(holdfast.Corrupt, "list iSCSI targets", "more than %d targets", maxTargets)
		case k == "TargetName":
			out = append(out, Target{Name: v})
		case k == "TargetAddress" && len(out) > 0:
			t := &out[len(out)-1]
			t.Addresses = append(t.Addresses, v)
		}
	}
	return out, nil
}
