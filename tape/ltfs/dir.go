package ltfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Dir is a Folder that can be written: a cartridge with two partitions in the reference implementation's file layout, which its checker reads.
type Dir struct {
	Folder
	path string
}

// OpenDir returns the cartridge in the folder at a path; an empty folder is a blank one.
func OpenDir(path string) (*Dir, error) {
	d := &Dir{Folder: Folder{fsys: os.DirFS(path)}, path: path}
	for p := range uint8(2) {
		if d.has(p, 0, 'R') || d.has(p, 0, 'F') || d.has(p, 0, 'E') {
			continue
		}
		if err := d.put(d.name(p, 0, 'E'), nil); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *Dir) name(part uint8, n uint64, kind byte) string {
	return filepath.Join(d.path, fmt.Sprintf("%d_%d_%c", part, n, kind))
}

// put writes a file and waits until it is on the disk.
func (d *Dir) put(name string, p []byte) error {
	const op = "write folder"
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return holdfast.Errorf(holdfast.Offline, op, "%w", err)
	}
	_, err = f.Write(p)
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return holdfast.Errorf(holdfast.Offline, op, "%w", err)
	}
	return nil
}

// object writes the next object. What was behind it is gone, as on a tape, the farthest first, so that a crash leaves no gap.
func (d *Dir) object(kind byte, p []byte) error {
	last := d.at
	for d.has(d.part, last+1, 'R') || d.has(d.part, last+1, 'F') || d.has(d.part, last+1, 'E') {
		last++
	}
	for n := last; ; n-- {
		for _, k := range []byte("RFE") {
			if d.has(d.part, n, k) {
				if err := os.Remove(d.name(d.part, n, k)); err != nil {
					return holdfast.Errorf(holdfast.Offline, "write folder", "%w", err)
				}
			}
		}
		if n == d.at {
			break
		}
	}
	if err := d.put(d.name(d.part, d.at, kind), p); err != nil {
		return err
	}
	d.at++
	return d.put(d.name(d.part, d.at, 'E'), nil)
}

// Write implements Medium.
func (d *Dir) Write(_ context.Context, p []byte) error { return d.object('R', p) }

// Filemarks implements Medium.
func (d *Dir) Filemarks(_ context.Context, n int) error {
	for range n {
		if err := d.object('F', nil); err != nil {
			return err
		}
	}
	return nil
}

// Flush implements Medium: files are on the disk already, and the folder is brought there.
func (d *Dir) Flush(ctx context.Context, n int) error {
	if err := d.Filemarks(ctx, n); err != nil {
		return err
	}
	f, err := os.Open(d.path)
	if err == nil {
		err = f.Sync()
		if e := f.Close(); err == nil {
			err = e
		}
	}
	if err != nil {
		return holdfast.Errorf(holdfast.Offline, "write folder", "%w", err)
	}
	return nil
}

// EndOfData implements Medium.
func (d *Dir) EndOfData(context.Context) error {
	for d.at = 0; d.has(d.part, d.at, 'R') || d.has(d.part, d.at, 'F'); {
		d.at++
	}
	return nil
}

// SetAttributes implements Medium.
func (d *Dir) SetAttributes(_ context.Context, part uint8, as ...scsi.Attribute) error {
	for _, a := range as {
		if err := d.put(filepath.Join(d.path, fmt.Sprintf("attr_%d_%x", part, a.ID)), scsi.AppendAttribute(nil, a)); err != nil {
			return err
		}
	}
	return nil
}

// Attributes implements Tape. The change reference, which a drive keeps, is 1 here until somebody else counts it.
func (d *Dir) Attributes(ctx context.Context, part uint8) (map[uint16]scsi.Attribute, error) {
	as, err := d.Folder.Attributes(ctx, part)
	if err == nil {
		if _, ok := as[scsi.AttrChangeRef]; !ok {
			as[scsi.AttrChangeRef] = scsi.Attribute{ID: scsi.AttrChangeRef, Value: []byte{0, 0, 0, 1}}
			if part == 0 {
				err = d.SetAttributes(ctx, 0, as[scsi.AttrChangeRef])
			}
		}
	}
	return as, err
}
