// Package netem is a TCP proxy inside the process that behaves like a long or bad line: fixed delay, limited rate, cuts at a given byte,
// silence, refusal. It serves tests and bench, which need such lines without privileges.
//
// It owns its listener and the connections through it, promises nothing about crashes, and imports no package of the house but the clock.
package netem

import (
	"context"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast/internal/clock"
)

// A Line says how a proxy's connections behave. The zero Line is a direct one.
type Line struct {
	Delay time.Duration // one way; the round trip is twice that
	Rate  int64         // bytes per second in each direction of each connection; 0: no limit
	Clock clock.Clock   // nil: clock.System
}

// queueBytes is what a line buffers beyond what is under way on it: what a router would.
const queueBytes = 256 << 10

// chunkBytes is read at a time.
const chunkBytes = 64 << 10

// A Proxy forwards connections to a target. Methods are safe for concurrent use.
type Proxy struct {
	line   Line
	target string
	ln     net.Listener

	frozen  atomic.Bool  // swallow everything, close nothing: half-open connections
	refuse  atomic.Bool  // close new connections at once
	carried atomic.Int64 // bytes forwarded, both directions

	mu    sync.Mutex
	left  int64 // bytes until the cut; negative: no cut
	conns map[net.Conn]bool
	from  map[string]int64 // bytes taken from those that connected, by their address
	shut  bool
	wg    sync.WaitGroup
}

// Listen starts a proxy on a free loopback port.
func Listen(target string, line Line) (*Proxy, error) {
	if line.Clock == nil {
		line.Clock = clock.System
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{line: line, target: target, ln: ln, left: -1, conns: map[net.Conn]bool{}, from: map[string]int64{}}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Dial connects through the proxy; it fits wire.DialFunc.
func (p *Proxy) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", p.Addr())
}

// Carried returns the bytes forwarded so far in both directions.
func (p *Proxy) Carried() int64 { return p.carried.Load() }

// From returns the bytes that came so far from those that connected, by their IP addresses.
func (p *Proxy) From() map[string]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.from)
}

// A source counts what is read from one that connected.
type source struct {
	net.Conn
	p  *Proxy
	ip string
}

func (s source) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.from[s.ip] += int64(n)
	return n, err
}

// CutAfter makes every connection break, with a reset, when n more bytes were forwarded in either direction; those n arrive as far as the line is fast.
func (p *Proxy) CutAfter(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = n
}

// Cut breaks every connection now.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	reset(p.disarm())
}

// disarm takes back a pending cut and returns the connections there are. The caller has p.mu.
func (p *Proxy) disarm() []net.Conn {
	p.left = -1
	cs := make([]net.Conn, 0, len(p.conns))
	for c := range p.conns {
		cs = append(cs, c)
	}
	return cs
}

func reset(cs []net.Conn) {
	for _, c := range cs {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0) // a reset instead of an orderly end; without it the connection ends anyway
		}
		c.Close()
	}
}

// Freeze makes lines swallow what they are given, without closing anything. Freeze(false) ends that for connections that have
// lost nothing yet; the others stay silent.
func (p *Proxy) Freeze(on bool) { p.frozen.Store(on) }

// Refuse makes the proxy close new connections at once, until Refuse(false).
func (p *Proxy) Refuse(on bool) { p.refuse.Store(on) }

// Close ends the proxy and its connections.
func (p *Proxy) Close() error {
	err := p.ln.Close()
	p.mu.Lock()
	p.shut = true
	reset(p.disarm())
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		near, err := p.ln.Accept()
		if err != nil {
			return
		}
		if p.refuse.Load() {
			near.Close()
			continue
		}
		p.wg.Go(func() { p.connect(near) })
	}
}

// connect joins near to the target for the life of the connection.
func (p *Proxy) connect(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer far.Close()
	if !p.track(near, far) {
		return
	}
	defer p.untrack(near, far)
	var wg sync.WaitGroup
	ip, _, _ := net.SplitHostPort(near.RemoteAddr().String()) // of a TCP connection it can be split
	wg.Go(func() { p.forward(source{near, p, ip}, far) })
	wg.Go(func() { p.forward(far, near) })
	wg.Wait()
}

func (p *Proxy) track(cs ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut {
		return false
	}
	for _, c := range cs {
		p.conns[c] = true
	}
	return true
}

func (p *Proxy) untrack(cs ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range cs {
		delete(p.conns, c)
	}
}

// spend takes n bytes of what is left until the cut. At the cut it returns how many may still be forwarded and which connections are to
// break then: those there are now, so that one made meanwhile is not hit.
func (p *Proxy) spend(n int) (allowed int, victims []net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left < 0 {
		return n, nil
	}
	if int64(n) < p.left {
		p.left -= int64(n)
		return n, nil
	}
	allowed = int(p.left)
	return allowed, p.disarm()
}

// A parcel is bytes on the line and when they come out at the other end.
type parcel struct {
	b   []byte
	due time.Time
	eof bool
}

// forward is one direction: bytes are stamped as they come in and leave when they are due, so that the delay is the line's and
// not that of each read.
func (p *Proxy) forward(from, to net.Conn) {
	q := &queue{most: p.capacity()}
	q.moved.L = &q.mu
	var wg sync.WaitGroup
	wg.Go(func() {
		if !p.deliver(to, q) {
			q.close()
			from.Close() // nobody takes what it sends
		}
	})
	p.collect(from, q)
	wg.Wait()
}

// A queue is what is on the line in one direction, bounded in bytes.
type queue struct {
	mu     sync.Mutex
	moved  sync.Cond // something changed
	items  []parcel
	bytes  int64 // of items
	most   int64
	closed bool // the delivering side is gone
	silent bool // something was swallowed: what follows would not fit (deliverer only)
}

// put waits for room; false: nobody will take it.
func (q *queue) put(p parcel) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes >= q.most && !q.closed {
		q.moved.Wait()
	}
	q.items = append(q.items, p)
	q.bytes += int64(len(p.b))
	q.moved.Broadcast()
	return !q.closed
}

// next waits for a parcel and returns it, leaving it in the queue: it takes its room until it is out of the line.
func (q *queue) next() parcel {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 {
		q.moved.Wait()
	}
	return q.items[0]
}

func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= int64(len(q.items[0].b))
	q.items[0] = parcel{}
	q.items = q.items[1:]
	q.moved.Broadcast()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.moved.Broadcast()
}

// capacity is the number of bytes a direction holds: what is under way for the delay, and the queue.
func (p *Proxy) capacity() int64 {
	rate := p.line.Rate
	if rate == 0 {
		rate = 4 << 30 // as fast as loopback gets
	}
	return min(int64(p.line.Delay.Seconds()*float64(rate))+queueBytes, 1<<30)
}

// read is how many bytes are taken at a time: little on a slow line, so that its rate is smooth.
func (p *Proxy) read() int64 {
	if p.line.Rate == 0 {
		return chunkBytes
	}
	return min(max(p.line.Rate/500, 1460), chunkBytes)
}

// collect takes bytes in until the connection ends; an end of any kind is handed on as the end of the stream.
func (p *Proxy) collect(from net.Conn, q *queue) {
	var free time.Time // when the line has put out everything before
	var pool []byte
	for {
		if int64(len(pool)) < p.read() {
			pool = make([]byte, 16*p.read())
		}
		n, err := from.Read(pool[:p.read()])
		now := p.line.Clock.Now()
		if free.Before(now) {
			free = now
		}
		if p.line.Rate > 0 {
			free = free.Add(time.Duration(float64(n) / float64(p.line.Rate) * float64(time.Second)))
		}
		if !q.put(parcel{b: pool[:n:n], due: free.Add(p.line.Delay), eof: err != nil}) || err != nil {
			return
		}
		pool = pool[n:]
	}
}

// deliver puts bytes out when they are due, until the end of the stream.
func (p *Proxy) deliver(to net.Conn, q *queue) (whole bool) {
	for {
		pkt := q.next()
		if wait := pkt.due.Sub(p.line.Clock.Now()); wait > 0 {
			c, _ := p.line.Clock.After(wait)
			<-c
		}
		q.silent = q.silent || p.frozen.Load()
		if !q.silent {
			n, victims := p.spend(len(pkt.b))
			if _, err := to.Write(pkt.b[:n]); err != nil {
				return false
			}
			p.carried.Add(int64(n))
			if victims != nil {
				reset(victims)
				return false
			}
		}
		q.drop()
		if pkt.eof {
			if tc, ok := to.(*net.TCPConn); ok && !q.silent {
				_ = tc.CloseWrite() // the other direction may go on; it reports what is wrong
			}
			return true
		}
	}
}
