package wire

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
)

// A carrier moves a link's frames over one connection, with three goroutines: the reader (the caller of run), the writer, and
// a watcher that pings and notices a dead peer. The reader never waits for anything but the connection.
type carrier struct {
	l    *Link
	conn net.Conn
	br   *bufio.Reader
	done chan struct{} // closed when the reader has ended: nothing more will come
	gone chan struct{} // closed when all three have ended

	heard, said atomic.Int64 // bytes: what the watcher looks at
	ping        atomic.Bool  // due

	once  sync.Once
	cause error // the first thing that went wrong
}

// meteredConn counts bytes as they pass, so that a long frame on a slow line counts as a sign of life.
type meteredConn struct {
	net.Conn
	heard, said *atomic.Int64
}

func (c meteredConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.heard.Add(int64(n))
	return n, err
}

func (c meteredConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.said.Add(int64(n))
	return n, err
}

// connBuffer joins small frames into one write (one TLS record, one packet).
const connBuffer = 64 << 10

func newCarrier(conn net.Conn) *carrier {
	c := &carrier{done: make(chan struct{}), gone: make(chan struct{})}
	c.conn = meteredConn{conn, &c.heard, &c.said}
	c.br = bufio.NewReaderSize(c.conn, connBuffer)
	return c
}

// attach makes c the link's connection. The peer has received everything up to received. A carrier still in use must have been
// detached. It fails when the link is dead or received cannot be.
func (l *Link) attach(c *carrier, received, window uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := &l.out
	switch {
	case l.err != nil:
		return l.err
	case l.carrier != nil:
		panic("wire: two connections of one link")
	case received < o.acked || received > o.taken:
		return violated(holdfast.Invalid, "the peer says it has message %d; sent are %d to %d", received, o.acked, o.taken)
	}
	o.next = int(received - o.acked)
	o.here = received
	o.limit = int64(min(l.o.ReplayBytes, int(max(window, maxEarly))))
	l.in.ackDue = l.in.used > 0 // the last one may have been lost
	c.l, l.carrier = l, c
	l.ended.Add(1)
	return nil
}

// run moves frames until the connection or the link ends, and returns why. It is called once, after attach.
func (c *carrier) run() error {
	l := c.l
	var wg sync.WaitGroup
	wg.Go(func() { c.fail(c.write()) })
	wg.Go(c.watch)
	c.fail(c.read())
	close(c.done)
	c.conn.Close() // only ends: what was written was acknowledged or will be sent again
	wg.Wait()
	l.mu.Lock()
	l.carrier = nil
	err := l.err
	l.mu.Unlock()
	close(c.gone)
	l.ended.Done()
	if err != nil {
		return err
	}
	l.stats.breaks.Add(1)
	return c.cause
}

// fail notes the first error and cuts the connection. nil is ignored.
func (c *carrier) fail(err error) {
	if err == nil {
		return
	}
	c.once.Do(func() { c.cause = err })
	c.conn.Close()
}

// read takes frames until the connection ends. When the link has died at this end it reads on, so that the last frame
// reaches the peer instead of a reset.
func (c *carrier) read() error {
	l := c.l
	for {
		f, h, err := readFrame(c.br, MaxFrame)
		if err == nil {
			err = c.receive(f, h)
		}
		if err == nil {
			continue
		}
		if isViolation(err) {
			l.die(err, refusal(err), true)
		}
		l.mu.Lock()
		drain := l.err != nil && l.mine
		l.mu.Unlock()
		if drain {
			_, _ = io.Copy(io.Discard, c.conn)
		}
		return err
	}
}

// receive handles one frame, which it owns.
func (c *carrier) receive(f *frame, h header) error {
	l := c.l
	l.stats.received.Add(int64(len(f.b)))
	if h.typ.isMessage() {
		return l.queue(f, h)
	}
	defer f.free()
	switch p := f.payload(); h.typ {
	case TypePing:
		return nil
	case TypeAck:
		if len(p) != 4 {
			return malformed(TypeAck, "it has %d bytes", len(p))
		}
		return l.acknowledge(le.Uint32(p))
	case TypeClose:
		l.die(io.EOF, nil, false)
		return io.EOF
	case TypeRefuse:
		body, err := parseFailure(h.typ, p)
		if err != nil {
			return err
		}
		e := body.(Failure).AsError()
		e.Op = "refused by the other end"
		l.die(e, nil, false)
		return e
	}
	return violated(holdfast.Invalid, "a %v frame on an open link", h.typ)
}

// queue puts a message's frame into the inbox.
func (l *Link) queue(f *frame, h header) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	in := &l.in
	if l.err != nil {
		f.free()
		return l.err
	}
	if h.seq != in.got+1 {
		return violated(holdfast.Invalid, "frame %d came after frame %d", h.seq, in.got)
	}
	if in.part != 0 && (h.typ != in.part || h.channel != in.partChan) {
		return violated(holdfast.Invalid, "a %v frame inside a %v message", h.typ, in.part)
	}
	in.partBytes += int(h.length)
	if most, _ := h.typ.limit(); in.partBytes > most {
		return violated(holdfast.Invalid, "a %v message of more than %d bytes", h.typ, most)
	}
	if h.flags&flagMore != 0 {
		if h.length != MaxFrame {
			return violated(holdfast.Invalid, "a %v message cut after %d bytes", h.typ, h.length)
		}
		in.part, in.partChan = h.typ, h.channel
	} else {
		in.part, in.partBytes = 0, 0
		in.whole++
	}
	in.got = h.seq
	in.bytes += int64(len(f.b))
	// An honest peer has at most its window under way, or one message that is longer.
	if most := int64(l.o.RecvBytes) + MaxMessage + MaxFrame; in.bytes > most {
		return violated(holdfast.Invalid, "the peer sent %d bytes beyond what it was allowed", in.bytes)
	}
	in.frames.push(f)
	wake(l.arrived)
	return nil
}

// acknowledge drops what the peer has consumed.
func (l *Link) acknowledge(seq uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := &l.out
	if l.err != nil {
		return nil
	}
	if seq < o.acked || seq > o.here {
		return violated(holdfast.Invalid, "an ack of message %d; sent are %d to %d", seq, o.acked, o.here)
	}
	for o.acked < seq {
		f := o.frames.pop()
		o.acked++
		o.next--
		o.bytes -= int64(len(f.b))
		if f == o.writing {
			f.orphan = true
		} else {
			f.free()
		}
	}
	if o.waiting > 0 {
		close(o.room)
		o.room = make(chan struct{})
	}
	return nil
}

// write sends what is due: acks first, then messages, then a ping; it flushes when nothing is.
func (c *carrier) write() error {
	l := c.l
	bw := bufio.NewWriterSize(c.conn, connBuffer)
	for {
		work, last := c.nextFrame()
		switch {
		case last:
			return c.farewell(bw, work)
		case work == nil:
			if err := bw.Flush(); err != nil {
				return err
			}
			select {
			case <-l.kick:
			case <-l.dead:
			case <-c.done:
				wake(l.kick) // it may have been meant for the next connection
				return nil
			}
			continue
		}
		_, err := bw.Write(work.b)
		c.wrote(work)
		if err != nil {
			return err
		}
	}
}

// nextFrame picks the next frame to write, or nil. last says that the link is dead and the frame (or nil) is the end.
func (c *carrier) nextFrame() (f *frame, last bool) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	o := &l.out
	switch {
	case l.err != nil:
		f, l.last = l.last, nil
		return f, true
	case l.in.ackDue:
		l.in.ackDue, l.in.usedBytes = false, 0
		var b [4]byte
		le.PutUint32(b[:], l.in.used)
		return control(TypeAck, b[:]), false
	case o.next < o.frames.len():
		f = o.frames.at(o.next)
		o.next++
		o.writing = f
		o.here = f.seq()
		if o.here > o.taken {
			o.taken = o.here
		} else {
			l.stats.resent.Add(int64(len(f.b)))
		}
		return f, false
	case c.ping.Swap(false):
		return control(TypePing, nil), false
	}
	return nil, false
}

// wrote takes a frame back from the writer.
func (c *carrier) wrote(f *frame) {
	l := c.l
	l.stats.sent.Add(int64(len(f.b)))
	if !Type(f.b[0]).isMessage() {
		f.free()
		return
	}
	l.mu.Lock()
	l.out.writing = nil
	orphan := f.orphan
	l.mu.Unlock()
	if orphan {
		f.free()
	}
}

// farewell writes the last frame and half-closes, then leaves the connection to reader and watcher.
func (c *carrier) farewell(bw *bufio.Writer, f *frame) error {
	if f == nil {
		return nil
	}
	if _, err := bw.Write(f.b); err != nil {
		return err
	}
	f.free()
	if err := bw.Flush(); err != nil {
		return err
	}
	closeWrite(c.conn)
	return nil
}

// closeWrite half-closes a connection that can. An error shows up at the reader.
func closeWrite(conn net.Conn) {
	if m, ok := conn.(meteredConn); ok {
		conn = m.Conn
	}
	if cw, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	}
}

// watch pings a silent direction, cuts the connection to a dead peer, and bounds the time of a farewell.
func (c *carrier) watch() {
	var heard, said int64
	silent := 0
	for {
		tick, stop := c.l.o.Clock.After(c.l.o.PingEvery)
		select {
		case <-c.done:
			stop()
			return
		case <-c.l.dead:
			stop()
			c.cutAfterGrace()
			return
		case <-tick:
		}
		if h := c.heard.Load(); h != heard {
			heard, silent = h, 0
		} else if silent++; silent >= deadPings {
			c.fail(holdfast.Errorf(holdfast.Offline, "read", "nothing heard from the other end for %v", c.l.o.PingEvery*deadPings))
			return
		}
		if s := c.said.Load(); s == said {
			c.ping.Store(true)
			wake(c.l.kick)
		}
		said = c.said.Load()
	}
}

func (c *carrier) cutAfterGrace() {
	limit, stop := c.l.o.Clock.After(grace)
	defer stop()
	select {
	case <-c.done:
	case <-limit:
		c.conn.Close() // the reader reports
	}
}

// sendAlone writes one frame on a connection that has no carrier yet.
func sendAlone(conn net.Conn, f *frame) error {
	_, err := conn.Write(f.b)
	f.free()
	return err
}

// closeOn closes conn when ctx ends before the returned function is called: how handshakes are bounded in time.
func closeOn(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { conn.Close() })
}
