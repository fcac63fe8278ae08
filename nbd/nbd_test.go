package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// A memDisk is a Backend in memory that knows which 4 KiB pages hold data. fail, if set, is asked before each call.
type memDisk struct {
	mu      sync.Mutex
	data    []byte
	used    []bool
	flushes int
	fail    func(op string) error
}

const memPage = 4096

func newMemDisk(size int64) *memDisk {
	return &memDisk{data: make([]byte, size), used: make([]bool, (size+memPage-1)/memPage)}
}

func (d *memDisk) ask(op string) error {
	if d.fail == nil {
		return nil
	}
	return d.fail(op)
}

func (d *memDisk) Size() int64 { return int64(len(d.data)) }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.data[off:off+int64(len(p))]), d.ask("read")
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.ask("write"); err != nil {
		return 0, err
	}
	for i := off / memPage; i*memPage < off+int64(len(p)); i++ {
		d.used[i] = true
	}
	return copy(d.data[off:off+int64(len(p))], p), nil
}

func (d *memDisk) Zero(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	for i := (off + memPage - 1) / memPage; (i+1)*memPage <= off+n; i++ {
		d.used[i] = false
	}
	return d.ask("zero")
}

func (d *memDisk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	return d.ask("flush")
}

func (d *memDisk) Allocated(off, n int64) (holdfast.Extents, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var es holdfast.Extents
	for i := off / memPage; i*memPage < off+n; i++ {
		if d.used[i] {
			es = append(es, holdfast.Extent{Off: i * memPage, Len: memPage})
		}
	}
	return es.Normal(d.Size()).Intersect(holdfast.Extents{{Off: off, Len: n}}), nil
}

// start serves exports on a unix socket and returns its path; the server is stopped with the test and must stop cleanly.
func start(t *testing.T, srv *Server, exports ...Export) (sock string, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	sock = filepath.Join(dir, "s")
	l, err := Listen("unix:" + sock)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l, exports...) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Serve: %v", err)
			}
			os.RemoveAll(dir)
		})
	}
	t.Cleanup(stop)
	return sock, stop
}

// tool runs a client program; a missing one fails the test.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s(qemu-utils and libnbd-bin must be installed)", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func fill(d *memDisk, seed uint64, extents ...holdfast.Extent) {
	r := rand.New(rand.NewPCG(seed, 1))
	for _, e := range extents {
		p := make([]byte, e.Len)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		_, _ = d.WriteAt(p, e.Off)
	}
}

// TestQemuSeesTheSameDisk copies a sparse disk out and back in with qemu-img and compares.
func TestQemuSeesTheSameDisk(t *testing.T) {
	src, dst := newMemDisk(48<<20), newMemDisk(48<<20)
	fill(src, 1, holdfast.Extent{Off: 4096, Len: 3 << 20}, holdfast.Extent{Off: 40<<20 - 512, Len: 1 << 20}, holdfast.Extent{Off: 47 << 20, Len: 1 << 20})
	sock, stop := start(t, &Server{OnError: func(err error) { t.Error(err) }},
		Export{Name: "src", Backend: src, ReadOnly: true, MultiConn: true}, Export{Name: "dst", Backend: dst, MultiConn: true})
	file := filepath.Join(t.TempDir(), "copy.qcow2")
	uri := func(name string) string { return "nbd+unix:///" + name + "?socket=" + sock }
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri("src"), file)
	tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", file, uri("src"))
	tool(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", file, uri("dst"))
	stop()
	if !bytes.Equal(src.data, dst.data) {
		t.Fatal("the copy through qemu differs")
	}
	if fi := tool(t, "qemu-img", "map", "--output=json", file); !strings.Contains(fi, `"zero": true`) {
		t.Error("holes were copied as data")
	}
	if dst.flushes == 0 {
		t.Error("qemu-img's flush never arrived")
	}
}

// TestNbdcopySeesTheSameDisk does it with libnbd over four connections, and through TCP.
func TestNbdcopySeesTheSameDisk(t *testing.T) {
	src, dst := newMemDisk(64<<20+512), newMemDisk(64<<20+512)
	fill(src, 2, holdfast.Extent{Off: 0, Len: 5 << 20}, holdfast.Extent{Off: 33 << 20, Len: 7 << 20}, holdfast.Extent{Off: 64 << 20, Len: 512})
	sock, _ := start(t, new(Server), Export{Name: "", Backend: src, ReadOnly: true, MultiConn: true})
	l, err := Listen("tcp:127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, Export{Name: "out", Backend: dst, MultiConn: true}) }()
	tool(t, "nbdcopy", "--connections=4", "--flush", "nbd+unix:///?socket="+sock, "nbd://"+l.Addr().String()+"/out")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(src.data, dst.data) {
		t.Fatal("the copy through nbdcopy differs")
	}
}

func TestNbdinfoMapIsTheAllocation(t *testing.T) {
	d := newMemDisk(16 << 20)
	fill(d, 3, holdfast.Extent{Off: 1 << 20, Len: 64 << 10}, holdfast.Extent{Off: 15 << 20, Len: 1 << 20})
	sock, _ := start(t, new(Server), Export{Name: "a", Description: "first disk", Backend: d}, Export{Name: "b", Backend: newMemDisk(512), ReadOnly: true})
	var m []struct {
		Offset, Length int64
		Type           int
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--map", "--json", "nbd+unix:///a?socket="+sock)), &m); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(m)
	want := "[{0 1048576 3} {1048576 65536 0} {1114112 14614528 3} {15728640 1048576 0}]"
	if got != want {
		t.Errorf("map is %s, want %s", got, want)
	}
	list := tool(t, "nbdinfo", "--list", "nbd+unix:///?socket="+sock)
	for _, want := range []string{`export="a"`, `export="b"`, "first disk", "is_read_only: true", "base:allocation"} {
		if !strings.Contains(list, want) {
			t.Errorf("the list lacks %s:\n%s", want, list)
		}
	}
}

// TestQemuIOWritesReachTheBackend drives each writing command with qemu-io.
func TestQemuIOWritesReachTheBackend(t *testing.T) {
	d := newMemDisk(8 << 20)
	sock, stop := start(t, new(Server), Export{Name: "x", Backend: d})
	uri := "nbd+unix:///x?socket=" + sock
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 0xa5 1000448 65536", "-c", "write -f -P 0x5a 4096 512", "-c", "write -z 1001472 4096",
		"-c", "discard 8192 4096", "-c", "aio_write -P 7 2M 1M", "-c", "aio_write -P 8 4M 1M", "-c", "aio_flush", "-c", "flush", "-c", "read -P 7 2M 1M", uri)
	stop()
	want := make([]byte, 8<<20)
	set := func(v byte, off, n int) { copy(want[off:off+n], bytes.Repeat([]byte{v}, n)) }
	set(0xa5, 1000448, 65536)
	set(0x5a, 4096, 512)
	set(0, 1001472, 4096)
	set(7, 2<<20, 1<<20)
	set(8, 4<<20, 1<<20)
	if !bytes.Equal(d.data, want) {
		t.Error("the disk is not what was written")
	}
	if d.flushes < 2 {
		t.Errorf("%d flushes; one with FUA and one flush are due", d.flushes)
	}
}

// A client speaks raw bytes.
type client struct {
	t *testing.T
	net.Conn
}

func dial(t *testing.T, sock string) *client {
	t.Helper()
	nc, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	c := &client{t, nc}
	c.read(18)
	return c
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// opt sends an option and returns the type and payload of its last reply.
func (c *client) opt(code uint32, payload []byte) (typ uint32, last []byte) {
	c.t.Helper()
	c.write(append(option{code, uint32(len(payload))}.append(nil), payload...))
	for {
		h := c.read(20)
		typ = binary.BigEndian.Uint32(h[12:])
		p := c.read(int(binary.BigEndian.Uint32(h[16:])))
		if typ == repAck || typ >= 1<<31 {
			return typ, last
		}
		last = p
	}
}

// begin negotiates fully with structured replies and base:allocation.
func (c *client) begin(name string) {
	c.t.Helper()
	c.write([]byte{0, 0, 0, 3})
	steps := []struct {
		code    uint32
		payload []byte
	}{{optStructuredReply, nil}, {optSetMeta, metaRequest{name, []string{metaAllocation}}.append(nil)}, {optGo, goRequest{name, []uint16{infoBlockSize}}.append(nil)}}
	for _, s := range steps {
		if typ, _ := c.opt(s.code, s.payload); typ != repAck {
			c.t.Fatalf("option %d: reply %#x", s.code, typ)
		}
	}
}

// reply reads one reply, simple or a whole structured one, and returns its errno.
func (c *client) reply() (cookie uint64, code uint32) {
	c.t.Helper()
	for {
		m := binary.BigEndian.Uint32(c.read(4))
		if m == magicSimple {
			b := c.read(12)
			return binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint32(b)
		}
		h := c.read(16)
		p := c.read(int(binary.BigEndian.Uint32(h[12:])))
		if binary.BigEndian.Uint16(h[2:]) == chunkError {
			code = binary.BigEndian.Uint32(p)
		}
		if binary.BigEndian.Uint16(h)&chunkDone != 0 {
			return binary.BigEndian.Uint64(h[4:]), code
		}
	}
}

func TestOptionsAreRefusedByTheProtocol(t *testing.T) {
	sock, _ := start(t, new(Server), Export{Name: "x", Backend: newMemDisk(1 << 20)})
	c := dial(t, sock)
	c.write([]byte{0, 0, 0, 3})
	for _, tc := range []struct {
		name    string
		code    uint32
		payload []byte
		want    uint32
	}{
		{"unknown option", 99, []byte("whatever"), repErrUnsup},
		{"TLS that is not offered", optStartTLS, nil, repErrPolicy},
		{"list with a payload", optList, []byte{1}, repErrInvalid},
		{"go without payload", optGo, nil, repErrInvalid},
		{"go with a lying name length", optGo, []byte{255, 255, 255, 255, 0, 0}, repErrInvalid},
		{"go for an unknown export", optGo, goRequest{name: "y"}.append(nil), repErrUnknown},
		{"info for an unknown export", optInfo, goRequest{name: "y"}.append(nil), repErrUnknown},
		{"meta context before structured replies", optSetMeta, metaRequest{"x", []string{metaAllocation}}.append(nil), repErrInvalid},
		{"structured replies with a payload", optStructuredReply, []byte{0}, repErrInvalid},
		{"too big", optGo, make([]byte, maxOptionBytes+1), repErrTooBig},
		{"structured replies", optStructuredReply, nil, repAck},
		{"unknown meta context", optSetMeta, metaRequest{"x", []string{"qemu:dirty-bitmap:b"}}.append(nil), repAck},
		{"info", optInfo, goRequest{"x", []uint16{infoName, infoDescr, infoBlockSize, 77}}.append(nil), repAck},
		{"abort", optAbort, nil, repAck},
	} {
		if got, last := c.opt(tc.code, tc.payload); got != tc.want || (tc.name == "unknown meta context" && last != nil) {
			t.Errorf("%s: reply %#x, want %#x", tc.name, got, tc.want)
		}
	}
	if _, err := c.Conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after abort: %v, want EOF", err)
	}
}

func TestOldExportNameWorks(t *testing.T) {
	sock, _ := start(t, new(Server), Export{Name: "x", Backend: newMemDisk(1 << 20)})
	c := dial(t, sock)
	c.write([]byte{0, 0, 0, 1})
	c.write(append(option{optExportName, 1}.append(nil), 'x'))
	if b := c.read(10 + oldZeroes); binary.BigEndian.Uint64(b) != 1<<20 {
		t.Errorf("size %d", binary.BigEndian.Uint64(b))
	}
	c.write(request{cmd: cmdRead, cookie: 5, length: 512}.append(nil))
	if cookie, code := c.reply(); cookie != 5 || code != 0 {
		t.Errorf("read: cookie %d, error %d", cookie, code)
	}
	c.read(512)
	c.write(request{cmd: cmdDisc}.append(nil))
	if _, err := c.Conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after disconnect: %v, want EOF", err)
	}
}

func TestRequestsAreRefusedByTheProtocol(t *testing.T) {
	d := newMemDisk(1 << 20)
	sock, _ := start(t, new(Server), Export{Name: "x", Backend: d}, Export{Name: "ro", Backend: d, ReadOnly: true})
	c, ro := dial(t, sock), dial(t, sock)
	c.begin("x")
	ro.begin("ro")
	for _, tc := range []struct {
		name string
		c    *client
		r    request
		want uint32
	}{
		{"read beyond the end", c, request{cmd: cmdRead, off: 1 << 20, length: 1}, errInval},
		{"read that overflows", c, request{cmd: cmdRead, off: 1<<64 - 1, length: 512}, errInval},
		{"read too long", c, request{cmd: cmdRead, length: maxRequestBytes + 1}, errOverflow},
		{"write beyond the end", c, request{cmd: cmdWrite, off: 1<<20 - 1, length: 2}, errNoSpc},
		{"trim beyond the end", c, request{cmd: cmdTrim, off: 1 << 20, length: 512}, errNoSpc},
		{"unknown flag", c, request{cmd: cmdRead, flags: 1 << 9, length: 512}, errInval},
		{"no-hole on a write", c, request{cmd: cmdWrite, flags: cmdFlagNoHole, length: 1}, errInval},
		{"unknown command", c, request{cmd: 5}, errInval},
		{"flush with a range", c, request{cmd: cmdFlush, length: 1}, errInval},
		{"status of nothing", c, request{cmd: cmdBlockStatus}, errInval},
		{"write to a read-only export", ro, request{cmd: cmdWrite, length: 1}, errPerm},
		{"zero a read-only export", ro, request{cmd: cmdWriteZeroes, length: 512}, errPerm},
		{"flush a read-only export", ro, request{cmd: cmdFlush}, 0},
		{"one extent of status", c, request{cmd: cmdBlockStatus, flags: cmdFlagReqOne, length: 1 << 20}, 0},
		{"read of nothing", c, request{cmd: cmdRead}, 0},
		{"read in one piece", c, request{cmd: cmdRead, flags: cmdFlagDF, length: 1 << 20}, 0},
	} {
		tc.r.cookie = 42
		b := tc.r.append(nil)
		if tc.r.cmd == cmdWrite {
			b = append(b, make([]byte, tc.r.length)...)
		}
		tc.c.write(b)
		if cookie, code := tc.c.reply(); cookie != 42 || code != tc.want {
			t.Errorf("%s: cookie %d error %d, want %d", tc.name, cookie, code, tc.want)
		}
	}
}

// TestBackendErrorsReachClientAndOwner fails each operation of the backend.
func TestBackendErrorsReachClientAndOwner(t *testing.T) {
	d := newMemDisk(1 << 20)
	fill(d, 4, holdfast.Extent{Off: 0, Len: 4096})
	d.fail = func(op string) error {
		if op == "write" {
			return holdfast.Errorf(holdfast.NoSpace, op, "the medium is full")
		}
		return errors.New("broken")
	}
	heard := make(chan error, 16)
	sock, _ := start(t, &Server{OnError: func(err error) { heard <- err }}, Export{Name: "x", Backend: d})
	c := dial(t, sock)
	c.begin("x")
	for _, tc := range []struct {
		cmd  uint16
		n    uint32
		want uint32
	}{{cmdRead, 512, errIO}, {cmdWrite, 512, errNoSpc}, {cmdWriteZeroes, 512, errIO}, {cmdTrim, 512, errIO}, {cmdFlush, 0, errIO}} {
		b := request{cmd: tc.cmd, length: tc.n}.append(nil)
		if tc.cmd == cmdWrite {
			b = append(b, make([]byte, tc.n)...)
		}
		c.write(b)
		if _, code := c.reply(); code != tc.want {
			t.Errorf("%s: error %d, want %d", cmdName(tc.cmd), code, tc.want)
		}
		if err := <-heard; err == nil {
			t.Error("nothing heard")
		}
	}
}

// TestStopAnswersWhatWasRead holds a write in the backend, stops the server and then lets the write go on: it is answered.
func TestStopAnswersWhatWasRead(t *testing.T) {
	d := newMemDisk(1 << 20)
	in, out := make(chan struct{}), make(chan struct{})
	d.fail = func(op string) error {
		if op == "write" {
			close(in)
			<-out
		}
		return nil
	}
	sock, stop := start(t, new(Server), Export{Name: "x", Backend: d})
	c := dial(t, sock)
	c.begin("x")
	c.write(append(request{cmd: cmdWrite, cookie: 9, length: 512}.append(nil), make([]byte, 512)...))
	<-in
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	close(out)
	if cookie, code := c.reply(); cookie != 9 || code != 0 {
		t.Errorf("cookie %d, error %d", cookie, code)
	}
	<-stopped
}

// TestPipelineOverOneConnection sends many overlapping-free requests without waiting and checks every byte.
func TestPipelineOverOneConnection(t *testing.T) {
	const n, size = 400, 8192
	d := newMemDisk(n * size)
	sock, stop := start(t, new(Server), Export{Name: "x", Backend: d})
	c := dial(t, sock)
	c.begin("x")
	go func() {
		for i := range n {
			b := request{cmd: cmdWrite, cookie: uint64(i), off: uint64(i * size), length: size}.append(nil)
			if _, err := c.Write(append(b, bytes.Repeat([]byte{byte(i + 1)}, size)...)); err != nil {
				t.Error(err)
			}
		}
	}()
	seen := make(map[uint64]bool)
	for range n {
		cookie, code := c.reply()
		if code != 0 || seen[cookie] {
			t.Fatalf("cookie %d, error %d, seen before: %v", cookie, code, seen[cookie])
		}
		seen[cookie] = true
	}
	stop()
	for i := range n {
		if d.data[i*size] != byte(i+1) || d.data[(i+1)*size-1] != byte(i+1) {
			t.Fatalf("write %d is not there", i)
		}
	}
}

func TestStartTLSHookComesFirst(t *testing.T) {
	calls := 0
	srv := &Server{StartTLS: func(nc net.Conn) (net.Conn, error) { calls++; return nc, nil }}
	sock, _ := start(t, srv, Export{Name: "x", Backend: newMemDisk(1 << 20)})
	c := dial(t, sock)
	c.write([]byte{0, 0, 0, 3})
	for _, tc := range []struct{ code, want uint32 }{{optList, repErrTLSReqd}, {optStartTLS, repAck}, {optList, repAck}, {optStartTLS, repErrPolicy}} {
		if got, _ := c.opt(tc.code, nil); got != tc.want {
			t.Errorf("option %d: %#x, want %#x", tc.code, got, tc.want)
		}
	}
	if calls != 1 {
		t.Errorf("the hook was called %d times", calls)
	}
}

func TestListenReplacesOnlyADeadSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + path); holdfast.KindOf(err) != holdfast.Busy {
		t.Errorf("a socket in use: %v, want busy", err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	l2, err := Listen("unix:" + path)
	if err != nil {
		t.Fatalf("a dead socket: %v", err)
	}
	l2.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:" + path); err == nil {
		t.Error("a file was replaced by a socket")
	}
	for _, bad := range []string{"", "unix", "udp:1.2.3.4:5", "unix:" + strings.Repeat("x", 200)} {
		if _, err := Listen(bad); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%q: %v, want invalid", bad, err)
		}
	}
}
