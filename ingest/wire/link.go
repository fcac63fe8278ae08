package wire

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// Defaults of LinkOptions.
const (
	DefaultReplayBytes = 8 << 20 // 40 MiB/s over 150 ms have 6 MiB under way
	DefaultWindow      = 10 * time.Minute

	defaultRecvBytes = 64 << 20 // what a peer with a larger replay buffer may have under way to this end
	defaultPing      = 5 * time.Second
	deadPings        = 4 // silent for so many ping intervals: the peer is dead
)

const (
	ackBytes = 256 << 10       // consumed bytes after which an ack is due even while more is waiting
	grace    = 2 * time.Second // for the last frame to reach the peer before the connection is cut
)

// LinkOptions steers a Link. The zero value is the default.
type LinkOptions struct {
	ReplayBytes int           // resumption buffer: bytes sent and not acknowledged; 0: DefaultReplayBytes
	RecvBytes   int           // bytes a peer may have under way to this end; bounds memory against hostile peers; 0: 64 MiB
	Window      time.Duration // how long a link lives without a connection; 0: DefaultWindow
	PingEvery   time.Duration // a silent direction is pinged so often; a peer silent for four times that is dead; 0: 5 s
	Clock       clock.Clock   // nil: clock.System
	OnBreak     func(error)   // told of each lost connection, in order, by the link's own goroutine; nil: nobody
}

func (o LinkOptions) withDefaults() LinkOptions {
	if o.ReplayBytes <= 0 {
		o.ReplayBytes = DefaultReplayBytes
	}
	if o.RecvBytes <= 0 {
		o.RecvBytes = defaultRecvBytes
	}
	if o.Window <= 0 {
		o.Window = DefaultWindow
	}
	if o.PingEvery <= 0 {
		o.PingEvery = defaultPing
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.OnBreak == nil {
		o.OnBreak = func(error) {}
	}
	return o
}

// A Link is a pipe of messages in both directions over one connection after the other: every message sent is received once, in
// order, or the link dies. Nothing of it survives the process.
//
// Memory is bounded: sent messages are kept until the peer's consumer has taken them, at most ReplayBytes of them (or one message,
// if that is longer); so flow control follows the consumer.
//
// Send, Close, Abort and Stats are safe for concurrent use. Recv is called by one goroutine at a time.
type Link struct {
	o    LinkOptions
	id   holdfast.ID
	tok  token
	peer holdfast.HostID // of an accepted link: whose certificate opened it

	sendTurn chan struct{} // held while a message's frames are queued: they stay together
	kick     chan struct{} // wakes the writer
	arrived  chan struct{} // wakes Recv
	dead     chan struct{} // closed by die

	mu   sync.Mutex
	out  outbox
	in   inbox
	err  error  // why the link is dead
	mine bool   // this end ended it: what was received is dropped
	last *frame // to be written as the end: Close or Refuse

	carrier *carrier // the connection in use; nil while there is none

	stats struct{ sent, received, resent, breaks atomic.Int64 }
	ended sync.WaitGroup // the keeper (dialled) and the connections' goroutines
}

// An outbox is the sending half of a link: frames from the oldest unacknowledged on.
type outbox struct {
	frames  deque
	bytes   int64  // of frames
	limit   int64  // the smaller of our ReplayBytes and the peer's window
	next    int    // index in frames of the next to be written
	last    uint32 // sequence number of the newest frame
	acked   uint32 // … of the newest acknowledged one
	taken   uint32 // … of the newest ever handed to a connection
	here    uint32 // … of the newest the current connection carried or the peer said it has
	writing *frame // in the writer's hands

	waiting int           // senders and closers
	room    chan struct{} // closed and renewed when frames go and somebody waits
}

// An inbox is the receiving half of a link.
type inbox struct {
	frames    deque
	bytes     int64
	whole     int    // complete messages in frames
	got       uint32 // highest sequence number received
	used      uint32 // highest consumed
	usedBytes int    // consumed since the last ack
	ackDue    bool

	part      Type // type of the message whose frames are arriving; 0: none
	partChan  uint16
	partBytes int
}

func newLink(o LinkOptions) *Link {
	l := &Link{
		o: o.withDefaults(), sendTurn: make(chan struct{}, 1), kick: make(chan struct{}, 1), arrived: make(chan struct{}, 1),
		dead: make(chan struct{}),
	}
	l.out.limit = int64(l.o.ReplayBytes)
	l.out.room = make(chan struct{})
	return l
}

// ID returns the link's id, the same at both ends.
func (l *Link) ID() holdfast.ID { return l.id }

// Peer returns the host whose certificate opened an accepted link; zero for a dialled one.
func (l *Link) Peer() holdfast.HostID { return l.peer }

// LinkStats counts a link's bytes, headers included, in frames handed to and taken from connections.
type LinkStats struct {
	Sent, Received, Resent int64 // Resent is part of Sent
	Breaks                 int64 // connections lost
	Unacked                int64 // in the resumption buffer now
}

// Stats returns the counts so far.
func (l *Link) Stats() LinkStats {
	l.mu.Lock()
	unacked := l.out.bytes
	l.mu.Unlock()
	return LinkStats{l.stats.sent.Load(), l.stats.received.Load(), l.stats.resent.Load(), l.stats.breaks.Load(), unacked}
}

// Done is closed when the link is dead; Err says why.
func (l *Link) Done() <-chan struct{} { return l.dead }

// Err returns why the link is dead, or nil while it lives.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Send queues a message; buffers in it are the caller's again on return. It waits while the resumption buffer is full. A message out of bounds
// is Invalid and leaves the link as it is; other errors mean that the link is dead, except that of ctx: then nothing was sent.
func (l *Link) Send(ctx context.Context, m Message) error {
	fs, err := encode(&m)
	if err != nil {
		return err
	}
	select {
	case l.sendTurn <- struct{}{}:
	case <-l.dead:
		return l.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-l.sendTurn }()
	var size int64
	for _, f := range fs {
		size += int64(len(f.b))
	}
	if err := l.waitOut(ctx, func(o *outbox) bool { return o.bytes == 0 || o.bytes+size <= o.limit }); err != nil {
		return err
	}
	return l.enqueue(&m, fs, size)
}

// enqueue gives frames their sequence numbers. The caller has the turn, so that room cannot have gone.
func (l *Link) enqueue(m *Message, fs []*frame, size int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if l.out.last > math.MaxUint32-uint32(len(fs)) {
		return holdfast.Errorf(holdfast.Transient, "send", "the link has carried all the messages it can") // 4 billion
	}
	for i, f := range fs {
		h := header{typ: m.Type, channel: m.Channel}
		if i < len(fs)-1 {
			h.flags = flagMore
		}
		l.out.last++
		h.seq = l.out.last
		f.seal(h)
		l.out.frames.push(f)
	}
	l.out.bytes += size
	wake(l.kick)
	return nil
}

// waitOut waits until ok holds of the outbox.
func (l *Link) waitOut(ctx context.Context, ok func(*outbox) bool) error {
	for {
		l.mu.Lock()
		if l.err != nil {
			l.mu.Unlock()
			return l.Err()
		}
		if ok(&l.out) {
			l.mu.Unlock()
			return nil
		}
		l.out.waiting++
		room := l.out.room
		l.mu.Unlock()
		var err error
		select {
		case <-room:
		case <-l.dead:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		l.mu.Lock()
		l.out.waiting--
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// Recv returns the next message, which is the caller's until Message.Release. Taking it acknowledges it. After the peer closed the link and everything
// was received it returns io.EOF; other errors mean that the link is dead, except that of ctx.
func (l *Link) Recv(ctx context.Context) (Message, error) {
	for {
		fs, err := l.take()
		if err != nil {
			return Message{}, err
		}
		if len(fs) > 0 {
			return l.open(fs)
		}
		select {
		case <-l.arrived:
		case <-l.dead:
		case <-ctx.Done():
			return Message{}, context.Cause(ctx)
		}
	}
}

// take removes the frames of the next complete message, or none.
func (l *Link) take() ([]*frame, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	in := &l.in
	if l.err != nil && (l.mine || in.whole == 0) {
		return nil, l.err
	}
	if in.whole == 0 {
		return nil, nil
	}
	var few [1]*frame
	fs := few[:0]
	for {
		f := in.frames.pop()
		fs = append(fs, f)
		in.bytes -= int64(len(f.b))
		in.usedBytes += len(f.b)
		in.used = f.seq()
		if f.b[1]&flagMore == 0 {
			break
		}
	}
	in.whole--
	if in.usedBytes >= ackBytes || in.whole == 0 {
		in.ackDue = true
		wake(l.kick)
	}
	return fs, nil
}

// open parses a message. One that does not parse ends the link.
func (l *Link) open(fs []*frame) (Message, error) {
	f := fs[0]
	h := f.head()
	p := f.payload()
	if len(fs) > 1 {
		p = nil
		for _, part := range fs {
			p = append(p, part.payload()...)
			part.free()
		}
		f = nil
	}
	m, err := parse(h.typ, h.channel, p, f)
	if err != nil {
		l.die(err, refusal(err), true)
		return Message{}, err
	}
	if f != nil && m.f == nil && h.typ != TypeParcel {
		f.free()
	}
	return m, nil
}

// Close waits until the peer has taken everything that was sent, tells it so, and gives up the connection. What was received and not
// taken is dropped. If ctx ends before, the error is ctx's and the link ends without that certainty. Closing a dead link returns
// why it died, and nil if the peer had closed it.
func (l *Link) Close(ctx context.Context) error {
	err := l.waitOut(ctx, func(o *outbox) bool { return o.bytes == 0 })
	if err == nil {
		l.die(errClosed, control(TypeClose, nil), true)
	} else {
		l.die(holdfast.Errorf(holdfast.Cancelled, "close link", "%w", err), control(TypeClose, nil), true)
	}
	l.ended.Wait()
	if errors.Is(err, io.EOF) || errors.Is(err, errClosed) {
		return nil
	}
	return err
}

var errClosed error = holdfast.Errorf(holdfast.Cancelled, "use link", "it was closed at this end")

// Abort ends the link now and tells the peer why, if there is a connection. It waits for the link's goroutines.
func (l *Link) Abort(err error) {
	if err == nil {
		err = errAborted
	}
	l.die(err, refusal(err), true)
	l.ended.Wait()
}

// errAborted is why a link died that was aborted without a reason.
var errAborted error = holdfast.Errorf(holdfast.Cancelled, "", "the link was aborted")

func refusal(err error) *frame { return control(TypeRefuse, appendFailure(FailureOf(err))) }

// die ends the link; only the first call counts. last, if not nil, is written as the last frame.
func (l *Link) die(err error, last *frame, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err, l.last, l.mine = err, last, mine
	close(l.dead)
	l.out.frames = deque{}
	l.out.bytes, l.out.next = 0, 0
	if mine {
		l.in.frames, l.in.bytes, l.in.whole = deque{}, 0, 0
	}
}

// wake leaves a token for a goroutine that waits on c, or will.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// A deque is a queue of frames that does not allocate once it has grown.
type deque struct {
	s    []*frame
	head int
}

func (d *deque) len() int        { return len(d.s) - d.head }
func (d *deque) at(i int) *frame { return d.s[d.head+i] }
func (d *deque) push(f *frame)   { d.s = append(d.s, f) }
func (d *deque) front() *frame   { return d.s[d.head] }

func (d *deque) pop() *frame {
	f := d.s[d.head]
	d.s[d.head] = nil
	d.head++
	if d.head > 32 && d.head*2 >= len(d.s) {
		n := copy(d.s, d.s[d.head:])
		clear(d.s[n:])
		d.s, d.head = d.s[:n], 0
	}
	return f
}
