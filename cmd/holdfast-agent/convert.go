package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

const (
	formatRaw  = "raw"
	formatVHDX = "vhdx"

	convertBuffer = 4 << 20  // read at once
	convertPiece  = 64 << 10 // zeros of this size are left out
)

func (a *app) vhdxConvertCmd() *cobra.Command {
	var o convertOptions
	var block string
	c := &cobra.Command{
		Use:   "convert SOURCE TARGET",
		Short: "Copy a disk between raw and VHDX, or from VHD",
		Long: "Copy a disk between raw and VHDX, or from VHD. VHDX and VHD sources are told by their content, anything else is raw; the target is\n" +
			"VHDX if its name ends in .vhdx, else raw. The target must not exist; it has its name only when it is whole.",
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if block != "" {
				n, err := cli.ParseSize(block)
				if err != nil {
					return err
				}
				if n > 1<<30 {
					return holdfast.Errorf(holdfast.Invalid, "", "a block of %s is too large", cli.Size(n)).Advise("blocks are 1M to 256M, a power of two")
				}
				o.vhdx.BlockSize = uint32(n)
			}
			o.vhdx.PhysicalSector = max(o.vhdx.LogicalSector, 4096)
			return convert(c.Context(), args[0], args[1], o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.from, "from", "", "format of the source: raw or vhdx (default: by content)")
	f.StringVar(&o.to, "to", "", "format of the target: raw or vhdx (default: by name)")
	f.StringVar(&o.vhdx.Subformat, "subformat", "dynamic", "of a VHDX target: dynamic or fixed")
	f.StringVar(&block, "block-size", "", "of a VHDX target: 1M to 256M (default: 32M)")
	f.Uint32Var(&o.vhdx.LogicalSector, "sector", 512, "logical sector of a VHDX target: 512 or 4096")
	return c
}

type convertOptions struct {
	from, to string
	vhdx     vhdx.CreateOptions
}

// A diskSource is a disk to be read.
type diskSource interface {
	io.ReaderAt
	io.Closer
}

// convert copies a disk.
func convert(ctx context.Context, from, to string, o convertOptions) error {
	const op = "convert disk"
	if o.to == "" {
		o.to = formatRaw
		if strings.EqualFold(filepath.Ext(to), ".vhdx") {
			o.to = formatVHDX
		}
	}
	if (o.to != formatRaw && o.to != formatVHDX) || (o.from != "" && o.from != formatRaw && o.from != formatVHDX) {
		return holdfast.Errorf(holdfast.Invalid, op, "formats are %s and %s", formatRaw, formatVHDX)
	}
	if o.vhdx.Subformat != "dynamic" && o.vhdx.Subformat != "fixed" {
		return holdfast.Errorf(holdfast.Invalid, op, "%q is no subformat of a new disk", o.vhdx.Subformat).Advise("give dynamic or fixed")
	}
	src, size, data, err := openSource(from, o.from)
	if err != nil {
		return err
	}
	if o.to == formatVHDX {
		o.vhdx.Size = size
		err = toVHDX(ctx, src, data, to, o.vhdx)
	} else {
		err = toRaw(ctx, src, data, to, size)
	}
	return errors.Join(err, src.Close())
}

// openSource opens a disk and says what of it may hold data.
func openSource(path, format string) (diskSource, int64, holdfast.Extents, error) {
	if format == "" {
		var err error
		if format, err = guessFormat(path); err != nil {
			return nil, 0, nil, err
		}
	}
	if format == formatVHDX {
		d, err := vhdx.Open(path)
		if err != nil {
			return nil, 0, nil, err
		}
		es, err := d.Allocated()
		if err != nil {
			return nil, 0, nil, errors.Join(err, d.Close())
		}
		return d, d.Info().Size, es, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, nil, fileError(err)
	}
	size, err := f.Seek(0, io.SeekEnd) // also right for block devices
	if err != nil {
		return nil, 0, nil, errors.Join(fileError(err), f.Close())
	}
	return f, size, holdfast.Extents{{Off: 0, Len: size}}.Normal(size), nil
}

// guessFormat looks for the signatures of VHDX and VHD. A VHD has its signature in the last sector.
func guessFormat(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fileError(err)
	}
	defer f.Close()
	b := make([]byte, 8)
	if _, err := f.ReadAt(b, 0); err == nil && (string(b) == "vhdxfile" || string(b) == "conectix") {
		return formatVHDX, nil
	}
	for _, back := range []int64{512, 511} { // old versions wrote 511 bytes
		if end, err := f.Seek(0, io.SeekEnd); err == nil && end >= back {
			if _, err := f.ReadAt(b, end-back); err == nil && string(b) == "conectix" {
				return formatVHDX, nil
			}
		}
	}
	return formatRaw, nil
}

func toVHDX(ctx context.Context, src io.ReaderAt, data holdfast.Extents, to string, o vhdx.CreateOptions) error {
	if o.Size%int64(o.LogicalSector) != 0 {
		return holdfast.Errorf(holdfast.Invalid, "convert disk", "a disk of %d bytes has no whole number of sectors of %d", o.Size, o.LogicalSector).
			Advise("pad the source first")
	}
	w, err := vhdx.Create(to, o)
	if err != nil {
		return err
	}
	if err := copyData(ctx, src, w, data); err != nil {
		return errors.Join(err, w.Abort())
	}
	if err := w.Finish(); err != nil {
		return errors.Join(err, w.Abort())
	}
	return nil
}

// toRaw writes under another name first: a raw file does not show that it is not whole.
func toRaw(ctx context.Context, src io.ReaderAt, data holdfast.Extents, to string, size int64) error {
	if _, err := os.Lstat(to); err == nil {
		return holdfast.Errorf(holdfast.Exist, "convert disk", "%s is there already", to).Advise("remove it or choose another name")
	}
	part := to + ".partial"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fileError(err)
	}
	err = f.Truncate(size)
	if err == nil {
		err = copyData(ctx, src, f, data)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(part, to)
	}
	if err != nil {
		return errors.Join(fileError(err), os.Remove(part))
	}
	return nil
}

// copyData copies ranges, leaving out pieces of zeros: what it writes to is zero already.
func copyData(ctx context.Context, src io.ReaderAt, dst io.WriterAt, data holdfast.Extents) error {
	buf, zero := make([]byte, convertBuffer), make([]byte, convertPiece)
	for _, e := range data {
		for off := e.Off; off < e.End(); {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := buf[:min(convertBuffer-off%convertBuffer, e.End()-off)]
			if _, err := src.ReadAt(p, off); err != nil && err != io.EOF {
				return err
			}
			for len(p) > 0 {
				n := min(int64(len(p)), convertPiece-off%convertPiece)
				if !bytes.Equal(p[:n], zero[:n]) {
					if _, err := dst.WriteAt(p[:n], off); err != nil {
						return err
					}
				}
				p, off = p[n:], off+n
			}
		}
	}
	return nil
}

// fileError classifies an error of the file system that has no kind yet.
func fileError(err error) error {
	var known *holdfast.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, os.ErrNotExist):
		return holdfast.Errorf(holdfast.NotExist, "", "%w", err)
	case errors.Is(err, os.ErrExist):
		return holdfast.Errorf(holdfast.Exist, "", "%w", err)
	case errors.Is(err, os.ErrPermission):
		return holdfast.Errorf(holdfast.Permission, "", "%w", err)
	}
	return err
}
