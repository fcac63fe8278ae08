package iscsi

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// FuzzReadPDU: whatever a target sends, a unit is read or refused, within the memory that was set aside; what we write is read as it was. With
// mend the length and the checksums are made to fit, so that what comes is not refused for these alone.
func FuzzReadPDU(f *testing.F) {
	var b bytes.Buffer
	p := pdu{data: []byte("data!")}
	p.h[0] = opDataIn
	if err := writePDU(&b, &p, digests{true, true}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes(), true, true, false)
	f.Add(b.Bytes(), true, true, true)
	f.Add(b.Bytes(), false, true, true)
	f.Add(bytes.Repeat([]byte{0xff}, 2000), false, false, false)
	f.Add(append(make([]byte, headerLen), 1, 2, 3), true, false, true)
	buf, buf2 := make([]byte, maxSegment+8), make([]byte, maxSegment+8) // one at a time uses them
	f.Fuzz(func(t *testing.T, raw []byte, header, data, mend bool) {
		d := digests{header, data}
		var extra []byte
		if mend {
			raw, extra = mended(raw, d)
		}
		got, err := readPDU(bytes.NewReader(raw), d, buf)
		if mend && err != nil {
			t.Fatalf("%x: %v", raw, err)
		}
		if err != nil || got.h[4] != 0 && extra == nil {
			return
		}
		got.h[4] = 0 // we never write additional segments
		var again bytes.Buffer
		if err := writePDU(&again, &got, d); err != nil {
			t.Fatal(err)
		}
		twin, err := readPDU(&again, d, buf2)
		if err != nil || twin.h != got.h || !bytes.Equal(twin.data, got.data) {
			t.Errorf("%x became %x, %v", got.h, twin.h, err)
		}
	})
}

// mended makes a unit of any bytes: 48 of header, up to three additional segments, data.
func mended(raw []byte, d digests) (out, extra []byte) {
	h := make([]byte, headerLen)
	raw = raw[copy(h, raw):]
	h[4] &= 3
	extra = make([]byte, 4*int(h[4]))
	raw = raw[copy(extra, raw):]
	raw = raw[:min(len(raw), maxSegment)]
	h[5], h[6], h[7] = byte(len(raw)>>16), byte(len(raw)>>8), byte(len(raw))
	out = append(h, extra...)
	if d.header {
		out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
	}
	body := append(bytes.Clone(raw), make([]byte, -len(raw)&3)...)
	out = append(out, body...)
	if d.data && len(raw) > 0 {
		out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(body, castagnoli))
	}
	return out, extra
}

// A puppet is a connection to a target that answers each unit it is sent with the next piece of a script, and hangs up when nothing more is sent.
type puppet struct {
	net.Conn
	mu     sync.Mutex
	more   *sync.Cond
	script [][]byte
	ready  bytes.Buffer
	over   bool
}

func (p *puppet) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over = p.over || len(p.script) == 0; !p.over {
		p.ready.Write(p.script[0])
		p.script = p.script[1:]
	}
	p.more.Broadcast()
	return len(b), nil
}

func (p *puppet) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready.Len() == 0 && !p.over { // the other side waits for more than the script has: it is to hear so soon
		stop := time.AfterFunc(5*time.Millisecond, func() { _ = p.Close() })
		for p.ready.Len() == 0 && !p.over {
			p.more.Wait()
		}
		stop.Stop()
	}
	return p.ready.Read(b)
}

func (p *puppet) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.more.Broadcast()
	return nil
}

// answerPDU is a unit of a script.
func answerPDU(op, flags byte, data string, fields map[int]uint32) []byte {
	p := pdu{data: []byte(data)}
	p.h[0], p.h[1] = op, flags
	for at, v := range fields {
		p.put(at, v)
	}
	var b bytes.Buffer
	_ = writePDU(&b, &p, digests{}) // a buffer takes everything
	return b.Bytes()
}

// FuzzSession: a target may answer to login, a read and a write with what it likes: both commands come to an end, with a result whose
// bytes fit, or with an error. Pieces of the script are set apart by the marker "|HF|".
func FuzzSession(f *testing.F) {
	login := [][]byte{answerPDU(opLoginResp, final|1, "AuthMethod=None\x00", map[int]uint32{24: 1, 28: 1, 32: 64}),
		answerPDU(opLoginResp, final|7, "HeaderDigest=None\x00DataDigest=None\x00MaxRecvDataSegmentLength=512\x00FirstBurstLength=1024\x00MaxBurstLength=2048\x00InitialR2T=Yes\x00ImmediateData=No\x00", map[int]uint32{24: 2, 28: 1, 32: 64})}
	good := func(tag uint32) []byte {
		return answerPDU(opResponse, final, "", map[int]uint32{16: tag, 24: 3, 28: 3, 32: 64})
	}
	for _, answers := range [][][]byte{
		{answerPDU(opDataIn, final|1, "0123456789", map[int]uint32{16: 1, 24: 3, 32: 64}), append(answerPDU(opR2T, final, "", map[int]uint32{16: 2, 20: 7, 40: 0, 44: 1000}), good(2)...)},
		{append(answerPDU(opDataIn, 0, "01234", map[int]uint32{16: 1, 20: noTag, 40: 5}), good(1)...), good(2)},
		{answerPDU(opResponse, final, "\x00\x12\x70\x00\x06\x00\x00\x00\x00\x0a\x00\x00\x00\x00\x29\x00\x00\x00\x00\x00", map[int]uint32{0: opResponse<<24 | final<<16 | 2, 16: 1, 24: 3}), answerPDU(opReject, final, "x", nil)},
		{append(answerPDU(opNopIn, final, "ping", map[int]uint32{16: noTag, 20: 9}), good(1)...), answerPDU(opAsync, final, "", map[int]uint32{36: 1 << 24})},
	} {
		f.Add(bytes.Join(append(login[:2:2], answers...), []byte("|HF|")))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 1<<16 {
			return
		}
		p := &puppet{script: bytes.Split(script, []byte("|HF|"))}
		p.more = sync.NewCond(&p.mu)
		first := true
		s, err := Dial(context.Background(), Options{Portal: "p:1", Target: "iqn.t", Initiator: "iqn.i", Clock: still{}, Dial: func(context.Context, string) (net.Conn, error) {
			if !first {
				return nil, io.ErrUnexpectedEOF
			}
			first = false
			return p, nil
		}})
		if err != nil {
			return
		}
		in := make([]byte, 4096)
		if r, err := s.LUN(1).Exec(context.Background(), scsi.Command{CDB: scsi.Inquiry(255), In: in[:255:255]}); err == nil && (r.In < 0 || r.In > 255) {
			t.Errorf("%d bytes of 255", r.In)
		}
		for _, b := range in[255:] {
			if b != 0 {
				t.Fatal("bytes behind the buffer")
			}
		}
		_, _ = s.LUN(1).Exec(context.Background(), scsi.Command{CDB: scsi.Write(3000), Out: make([]byte, 3000)})
		_ = p.Close() // a target that says nothing more
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// still is a clock that stands: no time limit is met, the script ends by itself.
type still struct{}

func (still) Now() time.Time                                 { return time.Unix(0, 0) }
func (still) After(time.Duration) (<-chan time.Time, func()) { return nil, func() {} }

// TestChecksumsFindChangedBytes: any one changed byte of a unit with checksums is noticed.
func TestChecksumsFindChangedBytes(t *testing.T) {
	var b bytes.Buffer
	p := pdu{data: []byte("some data of a block")}
	p.h[0] = opDataIn
	if err := writePDU(&b, &p, digests{true, true}); err != nil {
		t.Fatal(err)
	}
	for i := range b.Len() {
		raw := bytes.Clone(b.Bytes())
		raw[i] ^= 4
		if got, err := readPDU(bytes.NewReader(raw), digests{true, true}, make([]byte, maxSegment+8)); err == nil {
			t.Errorf("byte %d changed, and %x was read", i, got.h)
		}
	}
}
