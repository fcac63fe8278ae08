package demo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

const (
	diskSize  = 2 << 30   // of the made disk, as the guest sees it
	diskData  = 256 << 20 // of it in use
	fileSize  = 1 << 20   // of one made file
	blockSize = 2 << 20   // of the VHDX
	window    = 4 << 20   // of a comparison
)

var words = bytes.Fields([]byte(`the of and to in a is that for it as was with be by on not he this are or his from at which but have an had they
	you were their one all we can her has there been if more when will would who so no out up into than them only time server disk backup
	virtual machine error warning info request response started stopped user password table index query update commit`))

// makeDisk writes a dynamic VHDX as machines have them: text, tables, things that do not compress, copies of files, and much free space.
func makeDisk(ctx context.Context, path string) (err error) {
	w, err := vhdx.Create(path, vhdx.CreateOptions{Size: diskSize, Subformat: "dynamic", BlockSize: blockSize})
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	var kept [][]byte
	for i := range diskData / fileSize {
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), w.Abort())
		}
		b := make([]byte, fileSize)
		switch kind := rng.IntN(10); {
		case kind < 4:
			fillText(rng, b)
		case kind < 6:
			fillTable(rng, b)
		case kind < 8 || len(kept) == 0:
			fillRandom(rng, b)
		default:
			copy(b, kept[rng.IntN(len(kept))])
		}
		if len(kept) < 16 {
			kept = append(kept, b)
		}
		off := int64(i) * (diskSize / (diskData / fileSize)) // spread over the disk, holes between
		if _, err := w.WriteAt(b, off); err != nil {
			return errors.Join(err, w.Abort())
		}
	}
	return w.Finish()
}

func fillText(rng *rand.Rand, b []byte) {
	for n := 0; n < len(b); {
		n += copy(b[n:], words[rng.IntN(len(words))])
		if n < len(b) {
			b[n] = " \n"[min(rng.IntN(12), 11)/11]
			n++
		}
	}
}

// fillTable writes records of 64 bytes: a counter, a small number, a name, zeros.
func fillTable(rng *rand.Rand, b []byte) {
	id := rng.Uint64N(1 << 40)
	for n := 0; n+64 <= len(b); n += 64 {
		binary.LittleEndian.PutUint64(b[n:], id)
		binary.LittleEndian.PutUint32(b[n+8:], rng.Uint32N(1000))
		copy(b[n+12:n+40], words[rng.IntN(len(words))])
		id++
	}
}

func fillRandom(rng *rand.Rand, b []byte) {
	for n := 0; n+8 <= len(b); n += 8 {
		binary.LittleEndian.PutUint64(b[n:], rng.Uint64())
	}
}

// copyFile copies a disk file, which stays as it is; where it is zeros the copy gets holes.
func copyFile(ctx context.Context, from, to string) (err error) {
	const op = "copy disk"
	wrap := func(err error) error {
		if err == nil {
			return nil
		}
		kind := holdfast.Internal
		if errors.Is(err, os.ErrNotExist) {
			kind = holdfast.NotExist
		}
		return holdfast.Errorf(kind, op, "%w", err)
	}
	in, err := os.Open(from)
	if err != nil {
		return wrap(err)
	}
	defer in.Close() // only read
	st, err := in.Stat()
	if err != nil {
		return wrap(err)
	}
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return wrap(err)
	}
	defer func() { err = errors.Join(err, wrap(out.Close())) }()
	if err := out.Truncate(st.Size()); err != nil {
		return wrap(err)
	}
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(in, buf)
		if n > 0 && !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				return wrap(err)
			}
		}
		off += int64(n)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return wrap(err)
		}
	}
}

func openVHDX(path string) (*sized, error) {
	d, err := vhdx.Open(path)
	if err != nil {
		return nil, err
	}
	return &sized{d}, nil
}

// sized is a disk file with its size.
type sized struct{ *vhdx.Disk }

func (s *sized) Size() int64 { return s.Info().Size }

// image is what can be compared.
type image interface {
	io.ReaderAt
	Size() int64
}

// sameAs compares a disk byte by byte with the one VHDX in a folder, and returns its size.
func (d *demo) sameAs(ctx context.Context, want image, dir string) (n int64, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.vhdx"))
	if err != nil || len(files) != 1 {
		return 0, holdfast.Errorf(holdfast.Internal, "compare", "%d disks in %s, not one", len(files), dir)
	}
	got, err := openVHDX(files[0])
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, got.Close()) }()
	if got.Size() != want.Size() {
		return 0, fmt.Errorf("the restored disk has %d bytes, the original %d", got.Size(), want.Size())
	}
	a, b := make([]byte, window), make([]byte, window)
	for off := int64(0); off < want.Size(); off += window {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		n := min(window, want.Size()-off)
		if _, err := want.ReadAt(a[:n], off); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if _, err := got.ReadAt(b[:n], off); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if !bytes.Equal(a[:n], b[:n]) {
			return 0, holdfast.Errorf(holdfast.Corrupt, "compare", "the restored disk differs within %d bytes from %d on", n, off)
		}
	}
	return want.Size(), nil
}
