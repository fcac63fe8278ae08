package wire

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

const (
	maxLinksPerPeer = 64  // open at once: a host backs up some VMs at a time
	maxAccepted     = 256 // links that nobody has fetched with Accept yet
)

// An Acceptor is the listening end of links: it finds out whether a connection opens a new link or resumes one. A link is resumed only
// by the peer that opened it, with the token it was given.
type Acceptor struct {
	o     LinkOptions
	ready chan *Link

	mu     sync.Mutex
	links  map[holdfast.ID]*accepted
	closed bool
	waits  sync.WaitGroup // timers of links without connection
}

// accepted is what the acceptor knows of a link beyond the link itself (Acceptor.mu).
type accepted struct {
	*Link
	offered bool          // handed to Accept
	turn    chan struct{} // held by the Serve that uses the link
	resumed chan struct{} // closed when a connection comes while the link waits for one; nil while it has one
}

// NewAcceptor returns an acceptor; o is for all of its links.
func NewAcceptor(o LinkOptions) *Acceptor {
	return &Acceptor{o: o.withDefaults(), ready: make(chan *Link, maxAccepted), links: map[holdfast.ID]*accepted{}}
}

// Accept returns the next new link. Its owner ends it with Close or Abort.
func (a *Acceptor) Accept(ctx context.Context) (*Link, error) {
	select {
	case l := <-a.ready:
		return l, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Serve runs one connection of the authenticated peer until it ends, and closes it. The link outlives it for the window. An error says
// why the peer was refused; the peer was told. A connection that was merely lost is no error. ctx ends the connection.
func (a *Acceptor) Serve(ctx context.Context, conn net.Conn, peer holdfast.HostID) error {
	defer conn.Close() // every error of it was seen by a read or write
	stop := closeOn(ctx, conn)
	defer stop()
	c := newCarrier(conn)
	l, err := a.greet(ctx, c, peer)
	if err != nil {
		if isViolation(err) || holdfast.KindOf(err) != holdfast.Offline {
			Refuse(c.conn, err)
		}
		return err
	}
	return a.carry(l, c)
}

// carry runs a greeted connection: the caller holds the link's turn.
func (a *Acceptor) carry(l *accepted, c *carrier) error {
	err := c.run()
	a.mu.Lock()
	alive := l.Err() == nil && !a.closed
	if alive {
		l.resumed = make(chan struct{})
		a.waits.Add(1)
		go a.expire(l, l.resumed)
	}
	a.mu.Unlock()
	<-l.turn
	if alive {
		l.o.OnBreak(err)
		return nil
	}
	a.forget(l)
	if isViolation(err) {
		return err
	}
	return nil
}

// expire lets a link die that nobody resumes.
func (a *Acceptor) expire(l *accepted, resumed <-chan struct{}) {
	defer a.waits.Done()
	a.mu.Lock()
	window := l.o.Window
	if !l.offered {
		window = min(window, handshakeTime) // the peer may not even know of it
	}
	a.mu.Unlock()
	over, stop := l.o.Clock.After(window)
	defer stop()
	select {
	case <-resumed:
		return
	case <-l.dead:
	case <-over:
		l.die(holdfast.Errorf(holdfast.Offline, "wait for the other end", "no connection for %v", window), nil, false)
	}
	a.forget(l)
}

func (a *Acceptor) forget(l *accepted) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.links, l.id)
}

// Close aborts every link and waits for their goroutines. Serve refuses from then on.
func (a *Acceptor) Close() {
	a.mu.Lock()
	a.closed = true
	links := make([]*accepted, 0, len(a.links))
	for _, l := range a.links {
		links = append(links, l)
	}
	a.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range links {
		wg.Go(func() { l.Abort(errShutDown) })
	}
	wg.Wait()
	a.waits.Wait()
}

var errShutDown error = holdfast.Errorf(holdfast.Offline, "use link", "the appliance shuts down").Advise("try again when it is up")

// greet is the accepter's side of the handshake. On success the link's turn is held.
func (a *Acceptor) greet(ctx context.Context, c *carrier, peer holdfast.HostID) (*accepted, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	stop := closeOn(ctx, c.conn)
	defer stop()
	f, head, err := readFrame(c.br, maxEarly)
	if err != nil {
		if isViolation(err) {
			return nil, err
		}
		return nil, offline("greet", err)
	}
	defer f.free()
	if head.typ != TypeHello {
		return nil, violated(holdfast.Invalid, "a %v frame instead of Hello", head.typ)
	}
	theirs, _, err := parseHelloVersions(f.payload())
	if err != nil {
		return nil, err
	}
	version, err := choose(Versions(), theirs)
	if err != nil {
		return nil, err
	}
	h, err := parseHello(f.payload())
	if err != nil {
		return nil, err
	}
	l, err := a.link(ctx, &h, peer)
	if err != nil {
		return nil, err
	}
	if err := a.welcome(l, c, &h, version); err != nil {
		<-l.turn
		return nil, err
	}
	return l, nil
}

// link finds or makes the link of a Hello and takes its turn, cutting a connection that is still in use (the peer knows that it is lost before
// this end does).
func (a *Acceptor) link(ctx context.Context, h *hello, peer holdfast.HostID) (*accepted, error) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, errShutDown
	}
	if h.link.IsZero() {
		defer a.mu.Unlock()
		return a.newLink(h, peer)
	}
	l := a.links[h.link]
	a.mu.Unlock()
	if l == nil || l.peer != peer || !l.tok.equal(h.token) {
		// One answer for all three: a stranger learns nothing.
		return nil, holdfast.Errorf(holdfast.NotExist, "resume link", "there is no such link of this host").Advise("start the task again")
	}
	if c := l.current(); c != nil {
		c.fail(holdfast.Errorf(holdfast.Offline, "read", "the other end connected again"))
	}
	select {
	case l.turn <- struct{}{}:
		return l, nil
	case <-ctx.Done():
		return nil, offline("resume link", context.Cause(ctx))
	}
}

func (l *Link) current() *carrier {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.carrier
}

// newLink makes a link and holds its turn. The caller has a.mu.
func (a *Acceptor) newLink(h *hello, peer holdfast.HostID) (*accepted, error) {
	if h.token != (token{}) || h.received != 0 {
		return nil, violated(holdfast.Invalid, "a Hello for a new link with a token or received messages")
	}
	n := 0
	for _, l := range a.links {
		if l.peer == peer {
			n++
		}
	}
	if n >= maxLinksPerPeer {
		return nil, holdfast.Errorf(holdfast.Busy, "open link", "this host has %d links open already", n)
	}
	l := &accepted{Link: newLink(a.o), turn: make(chan struct{}, 1)}
	l.id, l.peer = holdfast.NewID(), peer
	_, _ = rand.Read(l.tok[:]) // never fails since Go 1.24
	l.turn <- struct{}{}
	a.links[l.id] = l
	return l, nil
}

// welcome answers a Hello and makes c the link's connection. The caller has the link's turn.
func (a *Acceptor) welcome(l *accepted, c *carrier, h *hello, version uint16) error {
	l.mu.Lock()
	w := welcome{version, l.id, l.tok, l.in.got, uint32(l.o.RecvBytes)}
	l.mu.Unlock()
	var err error
	if l.offered {
		if err = l.attach(c, h.received, h.window); err == nil {
			err = sendAlone(c.conn, control(TypeWelcome, w.append(nil)))
		}
	} else if err = sendAlone(c.conn, control(TypeWelcome, w.append(nil))); err == nil {
		if err = a.firstFrame(c); err == nil {
			err = l.attach(c, h.received, h.window)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.resumed != nil {
		close(l.resumed)
		l.resumed = nil
	}
	if err == nil && !l.offered {
		select {
		case a.ready <- l.Link:
			l.offered = true
		default:
			err = holdfast.Errorf(holdfast.Busy, "open link", "too many new links")
		}
	}
	if err != nil {
		a.undo(l)
	}
	return err
}

// firstFrame waits until the peer shows that it has its Welcome: only then is a new link worth anybody's attention.
func (a *Acceptor) firstFrame(c *carrier) error {
	if _, err := c.br.Peek(headerLen); err != nil {
		return offline("greet", err)
	}
	return nil
}

// undo takes a link out of a handshake that went wrong, so that it waits for the next one. The caller has a.mu and the link's turn.
func (a *Acceptor) undo(l *accepted) {
	l.mu.Lock()
	c := l.carrier
	l.carrier = nil
	l.mu.Unlock()
	if c != nil {
		close(c.gone)
		l.ended.Done()
	}
	if !a.closed {
		l.resumed = make(chan struct{})
		a.waits.Add(1)
		go a.expire(l, l.resumed)
	}
}

// Refuse tells a peer why it is turned away and closes the connection, taking at most a moment. It is for a door that refuses before a link is there.
func Refuse(conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	stop := closeOn(ctx, conn)
	defer stop()
	defer conn.Close() // the peer is gone either way
	if sendAlone(conn, refusal(err)) != nil {
		return
	}
	closeWrite(conn)
	// What the peer has sent must be read, or the reset that follows would overtake the answer.
	if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil && !errors.Is(err, io.EOF) {
		return
	}
}
