package iscsi

import (
	"bufio"
	"context"
	"net"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A conn is one connection in full feature phase. A reader goroutine takes what the target sends and never writes, so that two sides
// that wait for each other to read cannot come about; a second goroutine answers and sends pings.
type conn struct {
	params
	net   net.Conn
	clock clock.Clock
	wg    sync.WaitGroup
	done  chan struct{} // closed when the connection is over
	pings chan pdu      // units to be sent by the pinger

	writing sync.Mutex // one unit at a time on the wire, in the order of CmdSN

	mu      sync.Mutex // guards what follows
	err     error      // why it is over
	tasks   map[uint32]*task
	next    uint32 // initiator task tag
	cmdSN   uint32
	maxCmd  uint32
	expStat uint32
	window  chan struct{} // closed and replaced when maxCmd moves
	heard   time.Time
}

// A task is one command under way.
type task struct {
	in     []byte
	filled int
	r2t    chan pdu // requests for data
	done   chan struct{}
	result scsi.Result
	err    error
}

func newConn(l *login) *conn {
	c := &conn{params: l.params, net: l.conn, clock: l.o.Clock, done: make(chan struct{}), pings: make(chan pdu, 16), tasks: map[uint32]*task{},
		next: 1, cmdSN: l.cmdSN, maxCmd: l.maxCmd, expStat: l.expStat, window: make(chan struct{}), heard: l.o.Clock.Now()}
	c.wg.Go(func() { c.fail(c.readAll(l.r, l.buf)) })
	c.wg.Go(c.pinger)
	return c
}

func (c *conn) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// fail ends the connection and everything under way on it.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = lost(err)
	_ = c.net.Close() // it is over already
	for tag, t := range c.tasks {
		delete(c.tasks, tag)
		t.err = c.err
		close(t.done)
	}
	close(c.done)
}

// send writes a unit. stamp fills in numbers that must be taken in the order in which units go out.
func (c *conn) send(p *pdu, stamp func()) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	if stamp != nil {
		stamp()
	}
	p.put(28, c.expStat)
	c.mu.Unlock()
	if err := writePDU(c.net, p, c.digests); err != nil {
		c.fail(err)
		return lost(err)
	}
	return nil
}

// exec runs one command.
func (c *conn) exec(ctx context.Context, lun int, cmd scsi.Command) (scsi.Result, error) {
	t := &task{in: cmd.In, r2t: make(chan pdu, 4), done: make(chan struct{})}
	over, stop := c.clock.After(cmd.Limit())
	defer stop()
	if err := c.room(ctx, over); err != nil {
		return scsi.Result{}, err
	}
	p, tag := pdu{}, uint32(0)
	p.h[0], p.h[1] = opCommand, final|1
	switch {
	case len(cmd.In) > 0:
		p.h[1] |= 0x40
		p.put(20, uint32(len(cmd.In)))
	case len(cmd.Out) > 0:
		p.h[1] |= 0x20
		p.put(20, uint32(len(cmd.Out)))
		if c.immediate {
			p.data = cmd.Out[:min(len(cmd.Out), c.firstBurst, c.segment)]
		}
	}
	flatLUN(p.h[8:], lun)
	copy(p.h[32:], cmd.CDB)
	err := c.send(&p, func() {
		tag = c.tag()
		c.tasks[tag] = t
		p.put(16, tag)
		p.put(24, c.cmdSN)
		c.cmdSN++
	})
	if err != nil {
		return scsi.Result{}, err
	}
	for {
		select {
		case r := <-t.r2t:
			if err := c.dataOut(lun, tag, cmd.Out, &r); err != nil {
				c.fail(err)
				return scsi.Result{}, err
			}
		case <-t.done:
			return t.result, t.err
		case <-ctx.Done():
			return c.abandon(lun, tag, t, holdfast.Errorf(holdfast.KindOf(ctx.Err()), scsi.Name(cmd.CDB), "%w", ctx.Err()))
		case <-over:
			return c.abandon(lun, tag, t, holdfast.Errorf(holdfast.Transient, scsi.Name(cmd.CDB), "no answer within %v", cmd.Limit()))
		}
	}
}

// room waits until the target takes one more command.
func (c *conn) room(ctx context.Context, over <-chan time.Time) error {
	for {
		c.mu.Lock()
		ok, w, err := !before(c.maxCmd, c.cmdSN), c.window, c.err
		c.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-w:
		case <-c.done:
		case <-ctx.Done():
			return holdfast.Errorf(holdfast.KindOf(ctx.Err()), "talk to iSCSI target", "%w", ctx.Err())
		case <-over:
			return holdfast.Errorf(holdfast.Busy, "talk to iSCSI target", "the target takes no commands")
		}
	}
}

// tag returns a task tag that is not in use. The caller holds mu.
func (c *conn) tag() uint32 {
	for {
		c.next++
		if c.next != noTag && c.tasks[c.next] == nil {
			return c.next
		}
	}
}

// dataOut sends the bytes that a target asks for.
func (c *conn) dataOut(lun int, tag uint32, out []byte, r *pdu) error {
	off, n := int64(r.u32(40)), int64(r.u32(44))
	if n == 0 || off+n > int64(len(out)) || n > int64(c.maxBurst) {
		return holdfast.Errorf(holdfast.Corrupt, "talk to iSCSI target", "it asks for %d bytes at %d of %d", n, off, len(out))
	}
	for sn := uint32(0); n > 0; sn++ {
		k := min(n, int64(c.segment))
		p := pdu{data: out[off : off+k]}
		p.h[0] = opDataOut
		if k == n {
			p.h[1] = final
		}
		flatLUN(p.h[8:], lun)
		p.put(16, tag)
		p.put(20, r.u32(20))
		p.put(36, sn)
		p.put(40, uint32(off))
		if err := c.send(&p, nil); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// abandon has the target give a task up, and returns why. If the answer comes first after all, that is returned.
func (c *conn) abandon(lun int, tag uint32, t *task, why error) (scsi.Result, error) {
	a := &task{done: make(chan struct{})}
	p := pdu{}
	p.h[0], p.h[1] = opTask|immediate, final|1 // abort task
	flatLUN(p.h[8:], lun)
	p.put(20, tag)
	err := c.send(&p, func() {
		n := c.tag()
		c.tasks[n] = a
		p.put(16, n)
		p.put(24, c.cmdSN)
		p.put(32, c.cmdSN-1)
	})
	over, stop := c.clock.After(abortTimeout)
	defer stop()
	if err == nil {
		select {
		case <-t.done:
			return t.result, t.err
		case <-a.done:
		case <-over:
			c.fail(holdfast.Errorf(holdfast.Offline, "talk to iSCSI target", "it does not even answer to giving a command up"))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tasks, tag) // from here on nobody writes into the caller's buffer
	select {
	case <-t.done:
		if t.err == nil {
			return t.result, nil
		}
	default:
	}
	return scsi.Result{}, why
}

// readAll takes what the target sends until the connection ends.
func (c *conn) readAll(r *bufio.Reader, buf []byte) error {
	for {
		p, err := readPDU(r, c.digests, buf)
		if err != nil {
			return err
		}
		if err := c.take(&p); err != nil {
			return err
		}
	}
}

// take handles one unit from the target.
func (c *conn) take(p *pdu) error {
	const op = "talk to iSCSI target"
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = c.clock.Now()
	if m := p.u32(32); before(c.maxCmd, m) {
		c.maxCmd = m
		close(c.window)
		c.window = make(chan struct{})
	}
	hasStatus := p.op() != opR2T && (p.op() != opDataIn || p.h[1]&1 != 0) && (p.op() != opNopIn || p.tag() != noTag)
	if hasStatus {
		c.expStat = p.u32(24) + 1
	}
	t := c.tasks[p.tag()]
	switch p.op() {
	case opDataIn:
		if t == nil {
			return nil // of a task that was given up
		}
		off := int64(p.u32(40))
		if off+int64(len(p.data)) > int64(len(t.in)) {
			return holdfast.Errorf(holdfast.Corrupt, op, "it sends bytes up to %d of %d", off+int64(len(p.data)), len(t.in))
		}
		copy(t.in[off:], p.data)
		t.filled = max(t.filled, int(off)+len(p.data))
		if p.h[1]&1 != 0 {
			c.finish(p.tag(), t, scsi.Result{Status: scsi.Status(p.h[3]), In: t.filled}, nil)
		}
	case opResponse:
		if t != nil {
			c.response(p, t)
		}
	case opR2T:
		if t == nil || t.r2t == nil {
			return nil
		}
		select {
		case t.r2t <- *p:
		default:
			return holdfast.Errorf(holdfast.Corrupt, op, "it asks for more data than was agreed")
		}
	case opTaskResp:
		if t != nil {
			c.finish(p.tag(), t, scsi.Result{}, nil)
		}
	case opNopIn:
		if p.u32(20) != noTag { // wants an answer
			out := pdu{data: append([]byte(nil), p.data...)}
			out.h[0], out.h[1] = opNopOut|immediate, final
			copy(out.h[8:16], p.h[8:16])
			out.put(16, noTag)
			out.put(20, p.u32(20))
			select {
			case c.pings <- out:
			default: // it pings faster than we can answer: the answers would help nobody
			}
		}
	case opAsync:
		if p.h[36] != 0 { // not a SCSI event: it wants the connection or the session to end
			return holdfast.Errorf(holdfast.Offline, op, "the target ends the connection")
		}
	case opLogoutRsp:
		return holdfast.Errorf(holdfast.Offline, op, "logged out")
	case opReject:
		return holdfast.Errorf(holdfast.Invalid, op, "it rejects a unit with reason %02xh", p.h[2])
	default:
		return holdfast.Errorf(holdfast.Corrupt, op, "unit %02xh, which is none of a target's", p.op())
	}
	return nil
}

// response ends a task with its status and sense. The caller holds mu.
func (c *conn) response(p *pdu, t *task) {
	r := scsi.Result{Status: scsi.Status(p.h[3]), In: t.filled}
	if p.h[2] != 0 { // not completed at the target
		c.finish(p.tag(), t, r, holdfast.Errorf(holdfast.Transient, "talk to iSCSI target", "the target could not execute a command, response %02xh", p.h[2]))
		return
	}
	if len(p.data) >= 2 {
		n := min(2+int(be.Uint16(p.data)), len(p.data))
		r.Sense = append([]byte(nil), p.data[2:n]...)
	}
	c.finish(p.tag(), t, r, nil)
}

func (c *conn) finish(tag uint32, t *task, r scsi.Result, err error) {
	delete(c.tasks, tag)
	t.result, t.err = r, err
	close(t.done)
}

// pinger answers the target's pings, and sends one where nothing was heard for long.
func (c *conn) pinger() {
	asked := false
	for {
		wait := pingEvery
		if asked {
			wait = pingTimeout
		}
		after, stop := c.clock.After(wait)
		select {
		case <-c.done:
			stop()
			return
		case p := <-c.pings:
			stop()
			_ = c.send(&p, func() { p.put(24, c.cmdSN) }) // send has ended the connection after an error
			continue
		case now := <-after:
			c.mu.Lock()
			quiet := now.Sub(c.heard)
			c.mu.Unlock()
			switch {
			case quiet < wait:
				asked = false
			case asked:
				c.fail(holdfast.Errorf(holdfast.Offline, "talk to iSCSI target", "no sign of life for %v", quiet))
				return
			default:
				asked = true
				p := pdu{}
				p.h[0], p.h[1] = opNopOut|immediate, final
				p.put(20, noTag)
				_ = c.send(&p, func() { p.put(16, c.tag()); p.put(24, c.cmdSN) })
			}
		}
	}
}

// logout says goodbye, waits a moment for the answer, and ends the connection.
func (c *conn) logout() {
	p := pdu{}
	p.h[0], p.h[1] = opLogout|immediate, final // close the session
	err := c.send(&p, func() { p.put(16, c.tag()); p.put(24, c.cmdSN) })
	after, stop := c.clock.After(abortTimeout)
	defer stop()
	if err == nil {
		select {
		case <-c.done:
		case <-after:
		}
	}
	c.fail(holdfast.Errorf(holdfast.Offline, "talk to iSCSI target", "the session was closed"))
}
