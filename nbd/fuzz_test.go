package nbd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// FuzzParse: what parses must be written again identically.
func FuzzParse(f *testing.F) {
	f.Add(request{1, 2, 3, 4, 5}.append(nil))
	f.Add(option{7, 8}.append(nil))
	f.Add(goRequest{"name", []uint16{1, 2}}.append(nil))
	f.Add(metaRequest{"name", []string{"base:", ""}}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRequest(b); err == nil && !bytes.Equal(r.append(nil), b) {
			t.Errorf("request %+v", r)
		}
		if o, err := parseOption(b); err == nil && !bytes.Equal(o.append(nil), b) {
			t.Errorf("option %+v", o)
		}
		if g, err := parseGo(b); err == nil && !bytes.Equal(g.append(nil), b) {
			t.Errorf("go %+v", g)
		}
		if m, err := parseMeta(b); err == nil && !bytes.Equal(m.append(nil), b) {
			t.Errorf("meta %+v", m)
		}
	})
}

// byteConn plays a client's bytes and swallows the replies.
type byteConn struct{ io.Reader }

func (byteConn) Write(p []byte) (int, error)      { return len(p), nil }
func (byteConn) Close() error                     { return nil }
func (byteConn) LocalAddr() net.Addr              { return nil }
func (byteConn) RemoteAddr() net.Addr             { return nil }
func (byteConn) SetDeadline(time.Time) error      { return nil }
func (byteConn) SetReadDeadline(time.Time) error  { return nil }
func (byteConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzClient plays arbitrary bytes to a whole connection: it must end without a panic.
func FuzzClient(f *testing.F) {
	hello := []byte{0, 0, 0, 3}
	opt := func(b []byte, code uint32, payload []byte) []byte {
		return append(option{code, uint32(len(payload))}.append(b), payload...)
	}
	b := opt(bytes.Clone(hello), optStructuredReply, nil)
	b = opt(b, optSetMeta, metaRequest{"x", []string{metaAllocation}}.append(nil))
	b = opt(b, optGo, goRequest{"x", []uint16{infoBlockSize}}.append(nil))
	for _, r := range []request{{cmd: cmdRead, length: 8192}, {cmd: cmdBlockStatus, length: 65536}, {cmd: cmdFlush}, {cmd: cmdTrim, length: 1},
		{cmd: cmdWriteZeroes, off: 5, length: 4096}, {cmd: cmdRead, flags: cmdFlagDF, length: 512}} {
		b = r.append(b)
	}
	b = append(request{cmd: cmdWrite, flags: cmdFlagFUA, length: 4}.append(b), 1, 2, 3, 4)
	f.Add(request{cmd: cmdDisc}.append(b))
	f.Add(append(opt(bytes.Clone(hello), optExportName, []byte("x")), 0x25))
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<31))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &Server{exports: []Export{{Name: "x", Backend: newMemDisk(1 << 16)}}, conns: make(map[*conn]bool)}
		c := &conn{srv: s, nc: byteConn{bytes.NewReader(b)}}
		c.br = bufio.NewReader(c.nc)
		c.budget.freed.L = &c.budget.mu
		if c.serve() == nil {
			t.Error("a connection ended without a reason")
		}
	})
}
