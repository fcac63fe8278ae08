package rescue

import (
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// FuzzNode: whatever a node's bytes are, reading them neither panics nor yields a ref outside the node.
func FuzzNode(f *testing.F) {
	f.Add([]byte("HFRN\x01\x01\x1c\x00\x01\x00\x00\x00\x01\x00\x00\x00"+string(make([]byte, 32))+"\x00\x10\x00\x00"), uint8(28))
	f.Add([]byte("HFRN\x01\x02\x24\x1c\x01\x00\x00\x00\x00\x00\x00\x00\x01"+string(make([]byte, 63))), uint8(36))
	f.Fuzz(func(t *testing.T, b []byte, span uint8) {
		n, err := parseNode(b, span)
		if err != nil {
			if k := holdfast.KindOf(err); k != holdfast.Corrupt && k != holdfast.Unsupported {
				t.Errorf("kind %v", k)
			}
			return
		}
		for _, r := range n.refs {
			if r.Off < 0 || r.Len < 1 || r.Off+r.Len > 1<<n.span {
				t.Errorf("%+v in span %d", r, n.span)
			}
		}
		for _, c := range n.children {
			if c.index < 0 || c.index >= 1<<(n.span-n.child) {
				t.Errorf("child %d of span %d", c.index, n.span)
			}
		}
	})
}

// FuzzFrame: whatever a frame's bytes are, reading them does not panic.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("title\npool 2 00\n{}\nend 00\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseFrame("read", b); err != nil && holdfast.KindOf(err) != holdfast.Corrupt {
			t.Error(err)
		}
	})
}

// FuzzRemap: whatever the list of a rewritten file is, an ordinal that is found lies in one of its runs.
func FuzzRemap(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0}, uint32(6))
	f.Fuzz(func(t *testing.T, b []byte, was uint32) {
		r, err := parseRemap(b)
		if err != nil {
			return
		}
		if is, ok := r.find(was); ok && is > was {
			t.Errorf("%d became %d: chunks only move to the front", was, is)
		}
	})
}
