package vhdx

import (
	"bytes"
	"path/filepath"
	"testing"
)

// BenchmarkRead reads a dynamic disk of 256 MiB in pieces of 4 MiB from the page cache.
func BenchmarkRead(b *testing.B) {
	path := filepath.Join(b.TempDir(), "a.vhdx")
	newDisk(b, noSync{}, path, CreateOptions{Size: 256 * mib, Subformat: "dynamic"}, 0, bytes.Repeat([]byte("data"), 64*mib))
	d := must1(Open(path))(b)
	defer d.Close()
	buf := make([]byte, 4*mib)
	b.SetBytes(int64(len(buf)))
	for i := int64(0); b.Loop(); i++ {
		must(b, second(d.ReadAt(buf, i%64*int64(len(buf)))))
	}
}
