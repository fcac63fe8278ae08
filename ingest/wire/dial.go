package wire

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// A DialFunc makes a connection to the appliance, authenticated and encrypted.
type DialFunc func(ctx context.Context) (net.Conn, error)

const (
	handshakeTime = 15 * time.Second // for one attempt to connect, Hello and Welcome included
	firstBackoff  = 100 * time.Millisecond
	lastBackoff   = 5 * time.Second
)

// Dial opens a link: it connects once, and fails if that fails. Later it connects again by itself whenever the connection is lost, until
// that has not worked for the window; then the link dies with Offline. ctx bounds only the opening; Close or Abort ends the link.
func Dial(ctx context.Context, dial DialFunc, o LinkOptions) (*Link, error) {
	l := newLink(o)
	c, err := l.connect(ctx, dial)
	if err != nil {
		l.die(err, nil, true)
		return nil, err
	}
	l.ended.Add(1)
	go l.keep(context.WithoutCancel(ctx), c, dial)
	return l, nil
}

// keep runs one connection after the other. It is the owner of a dialled link's connections.
func (l *Link) keep(ctx context.Context, c *carrier, dial DialFunc) {
	defer l.ended.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends attempts to connect when the link dies
		select {
		case <-l.dead:
			cancel()
		case <-stop:
		}
	}()
	var backoff time.Duration
	for c != nil {
		before := l.progress()
		err := c.run()
		if l.Err() != nil {
			return
		}
		l.o.OnBreak(err)
		if l.progress() != before {
			backoff = 0
		} else { // a line that breaks before anything is through must not be hammered
			backoff = min(max(2*backoff, firstBackoff), lastBackoff)
		}
		c = l.reconnect(ctx, dial, backoff)
	}
}

// progress changes when a message was received or acknowledged.
func (l *Link) progress() [2]uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return [2]uint32{l.in.got, l.out.acked}
}

// reconnect tries until it has a connection, the window is over, or the peer or the link's owner has ended the link. It waits
// for backoff first, and longer after each attempt.
func (l *Link) reconnect(ctx context.Context, dial DialFunc, backoff time.Duration) *carrier {
	over, stop := l.o.Clock.After(l.o.Window)
	defer stop()
	var cause error = holdfast.Offline
	for {
		if backoff > 0 {
			wait, drop := l.o.Clock.After(backoff/2 + rand.N(backoff/2))
			select {
			case <-wait:
			case <-l.dead:
				drop()
				return nil
			case <-over:
				drop()
				l.die(holdfast.Errorf(holdfast.Offline, "reconnect", "no connection for %v: %w", l.o.Window, cause), nil, false)
				return nil
			}
		}
		c, err := l.connect(ctx, dial)
		switch {
		case err == nil:
			return c
		case isViolation(err) || isRefused(err):
			l.die(err, nil, false)
			return nil
		}
		cause = err
		backoff = min(max(2*backoff, firstBackoff), lastBackoff)
	}
}

// connect makes one attempt: dial, Hello, Welcome, attach.
func (l *Link) connect(ctx context.Context, dial DialFunc) (*carrier, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return nil, offline("connect", err)
	}
	stop := closeOn(ctx, conn)
	c := newCarrier(conn)
	if err := l.greet(c); err != nil {
		conn.Close()
		return nil, err
	}
	if !stop() {
		return nil, offline("connect", context.Cause(ctx))
	}
	return c, nil
}

// offline classifies an error of a connection, unless it has a kind.
func offline(op string, err error) error {
	if holdfast.KindOf(err) != holdfast.Internal {
		return err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return holdfast.Errorf(holdfast.Offline, op, "%w", err)
}

// greet is the dialler's side of the handshake.
func (l *Link) greet(c *carrier) error {
	l.mu.Lock()
	h := hello{Versions(), l.id, l.tok, l.in.got, uint32(l.o.RecvBytes)}
	l.mu.Unlock()
	if err := sendAlone(c.conn, control(TypeHello, h.append(nil))); err != nil {
		return offline("greet", err)
	}
	f, head, err := readFrame(c.br, maxEarly)
	if err != nil {
		if isViolation(err) {
			return err
		}
		return offline("greet", err)
	}
	defer f.free()
	if head.typ == TypeRefuse {
		body, err := parseFailure(TypeRefuse, f.payload())
		if err != nil {
			return err
		}
		return refused{body.(Failure).AsError()}
	}
	if head.typ != TypeWelcome {
		return violated(holdfast.Invalid, "a %v frame instead of Welcome", head.typ)
	}
	w, err := parseWelcome(f.payload())
	if err != nil {
		return err
	}
	if _, err := choose(Versions(), []uint16{w.version}); err != nil {
		return err
	}
	if l.id.IsZero() {
		l.id, l.tok = w.link, w.token // nobody else sees the link yet
	} else if w.link != l.id {
		return violated(holdfast.Invalid, "the other end resumed another link")
	}
	c.ping.Store(true) // shows the accepter that Welcome arrived
	return l.attach(c, w.received, w.window)
}

// refused is the peer's answer that trying again will not help.
type refused struct{ err *holdfast.Error }

func (r refused) Error() string { return "refused by the other end: " + r.err.Error() }
func (r refused) Unwrap() error { return r.err }

func isRefused(err error) bool {
	_, ok := err.(refused)
	return ok
}
