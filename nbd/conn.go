package nbd

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

// A conn is one client. One goroutine reads requests; each request is worked on by a goroutine of its own, at most
// maxInflight of them with at most maxInflightBytes of payload.
type conn struct {
	srv        *Server
	nc         net.Conn
	br         *bufio.Reader
	secure     bool
	noZeroes   bool
	structured bool
	metaOf     *Export // the export for which base:allocation was set
	meta1      bool    // it is the chosen export
	exp        *Export

	wmu    sync.Mutex // one reply chunk at a time
	budget budget
	wg     sync.WaitGroup
}

// serve runs the connection to its end and waits for its requests.
func (c *conn) serve() error {
	if err := c.negotiate(); err != nil {
		return err
	}
	c.srv.negotiated(c)
	defer c.wg.Wait()
	var head [requestHeaderBytes]byte
	for {
		if _, err := io.ReadFull(c.br, head[:]); err != nil {
			return err
		}
		r, err := parseRequest(head[:])
		if err != nil {
			return err
		}
		if r.cmd == cmdDisc {
			return errDone
		}
		if err := c.dispatch(r); err != nil {
			return err
		}
	}
}

// dispatch reads the rest of a request and hands it to a goroutine, waiting for room first. An error ends the connection.
func (c *conn) dispatch(r request) error {
	var hold int64
	switch r.cmd {
	case cmdWrite:
		if r.length > maxRequestBytes {
			return holdfast.Errorf(holdfast.Invalid, "serve nbd", "a write of %d bytes", r.length)
		}
		hold = int64(r.length)
	case cmdRead:
		hold = min(int64(r.length), maxRequestBytes) // larger ones are refused below and hold nothing
		if c.structured && r.flags&cmdFlagDF == 0 {
			hold = min(hold, pieceBytes)
		}
	}
	c.budget.take(hold)
	var payload []byte
	if r.cmd == cmdWrite {
		payload = buffer(int(r.length))
		if _, err := io.ReadFull(c.br, payload); err != nil {
			c.budget.give(hold)
			return err
		}
	}
	c.wg.Go(func() {
		defer c.budget.give(hold)
		if err := c.handle(r, payload); err != nil {
			c.nc.Close() // the stream of replies is broken: the reader above ends, too
		}
		release(payload)
	})
	return nil
}

// handle does one request and replies. The error is one of the connection, not of the request.
func (c *conn) handle(r request, payload []byte) error {
	if err := c.check(r); err != nil {
		return c.fail(r, err)
	}
	be, off, n := c.exp.Backend, int64(r.off), int64(r.length)
	var err error
	switch r.cmd {
	case cmdRead:
		return c.read(r)
	case cmdBlockStatus:
		return c.blockStatus(r)
	case cmdWrite:
		if n > 0 {
			_, err = be.WriteAt(payload, off)
		}
	case cmdTrim, cmdWriteZeroes:
		if n > 0 {
			err = be.Zero(off, n)
		}
	case cmdFlush:
		if !c.exp.ReadOnly {
			err = be.Flush()
		}
	}
	if err == nil && r.flags&cmdFlagFUA != 0 && r.cmd != cmdFlush && !c.exp.ReadOnly {
		err = be.Flush()
	}
	if err != nil {
		return c.fail(r, err)
	}
	return c.ok(r)
}

// check refuses what the protocol forbids.
func (c *conn) check(r request) error {
	allowed := uint16(cmdFlagFUA) // a server that offers FUA takes it on every command
	switch r.cmd {
	case cmdRead:
		if c.structured {
			allowed |= cmdFlagDF
		}
	case cmdWriteZeroes:
		allowed |= cmdFlagNoHole
	case cmdBlockStatus:
		allowed |= cmdFlagReqOne
		if !c.meta1 || r.length == 0 {
			return protoError(errInval)
		}
	case cmdWrite, cmdTrim, cmdFlush:
	default:
		return protoError(errInval)
	}
	writes := r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes
	switch {
	case r.flags&^allowed != 0:
		return protoError(errInval)
	case writes && c.exp.ReadOnly:
		return protoError(errPerm)
	case r.cmd == cmdFlush:
		if r.off != 0 || r.length != 0 {
			return protoError(errInval)
		}
		return nil
	case r.cmd == cmdRead && r.length > maxRequestBytes:
		return protoError(errOverflow)
	}
	size := uint64(c.exp.Backend.Size())
	if r.off > size || uint64(r.length) > size-r.off {
		if writes {
			return protoError(errNoSpc)
		}
		return protoError(errInval)
	}
	return nil
}

// ok replies to a request that has no data.
func (c *conn) ok(r request) error {
	if c.structured && r.cmd == cmdRead {
		return c.chunk(r, chunkDone, chunkNone, nil, nil)
	}
	return c.simple(r, 0, nil)
}

// fail replies with an error and reports those that are not the client's fault.
func (c *conn) fail(r request, err error) error {
	code := errno(err)
	if _, theirs := err.(protoError); !theirs {
		c.srv.report(holdfast.Errorf(holdfast.KindOf(err), "serve nbd", "%s at %d, %d bytes: %w", cmdName(r.cmd), r.off, r.length, err))
	}
	if !c.structured || (r.cmd != cmdRead && r.cmd != cmdBlockStatus) {
		return c.simple(r, code, nil)
	}
	msg := err.Error()
	msg = msg[:min(len(msg), 200)]
	b := binary.BigEndian.AppendUint32(nil, code)
	b = binary.BigEndian.AppendUint16(b, uint16(len(msg)))
	return c.chunk(r, chunkDone, chunkError, append(b, msg...), nil)
}

func cmdName(cmd uint16) string {
	names := [...]string{"read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status"}
	if int(cmd) < len(names) {
		return names[cmd]
	}
	return "unknown command"
}

func (c *conn) simple(r request, code uint32, data []byte) error {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 16), magicSimple)
	b = binary.BigEndian.AppendUint32(b, code)
	return c.send(binary.BigEndian.AppendUint64(b, r.cookie), data)
}

// chunk sends one structured reply chunk; its payload is head followed by data.
func (c *conn) chunk(r request, flags, typ uint16, head, data []byte) error {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 20+len(head)), magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	b = binary.BigEndian.AppendUint32(b, uint32(len(head)+len(data)))
	return c.send(append(b, head...), data)
}

func (c *conn) send(head, data []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	bufs := net.Buffers{head}
	if len(data) > 0 {
		bufs = append(bufs, data)
	}
	_, err := bufs.WriteTo(c.nc)
	return err
}

// A budget bounds the requests in flight. Only one goroutine takes. The zero budget is full.
type budget struct {
	mu    sync.Mutex
	freed sync.Cond // waited on with mu
	bytes int64
	count int
}

func (b *budget) take(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.count >= maxInflight || (b.count > 0 && b.bytes+n > maxInflightBytes) {
		b.freed.Wait()
	}
	b.count++
	b.bytes += n
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count--
	b.bytes -= n
	b.freed.Signal()
}

// pieces recycles the buffers of small requests, which are nearly all.
var pieces = sync.Pool{New: func() any { return new([pieceBytes]byte) }}

func buffer(n int) []byte {
	if n > pieceBytes {
		return make([]byte, n)
	}
	return pieces.Get().(*[pieceBytes]byte)[:n]
}

// release gives a buffer back that nobody uses any more.
func release(b []byte) {
	if cap(b) == pieceBytes {
		pieces.Put((*[pieceBytes]byte)(b[:pieceBytes]))
	}
}
