package iscsi

import (
	"bytes"
	"testing"
)

// FuzzReadPDU: whatever a target sends, a unit is read or refused, within the memory that was set aside; what we write is read as it was.
func FuzzReadPDU(f *testing.F) {
	var b bytes.Buffer
	p := pdu{data: []byte("data!")}
	p.h[0] = opDataIn
	if err := writePDU(&b, &p, digests{true, true}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes(), true, true)
	f.Add(bytes.Repeat([]byte{0xff}, 2000), false, false)
	f.Fuzz(func(t *testing.T, raw []byte, header, data bool) {
		d := digests{header, data}
		got, err := readPDU(bytes.NewReader(raw), d, make([]byte, maxSegment+8))
		if err != nil || got.h[4] != 0 {
			return
		}
		var again bytes.Buffer
		if err := writePDU(&again, &got, d); err != nil {
			t.Fatal(err)
		}
		twin, err := readPDU(&again, d, make([]byte, maxSegment+8))
		if err != nil || twin.h != got.h || !bytes.Equal(twin.data, got.data) {
			t.Errorf("%x became %x, %v", got.h, twin.h, err)
		}
	})
}

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
