package ltfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Folder is a cartridge in the reference implementation's file layout: object n of partition p is the file p_n_R (a record), p_n_F (a filemark) or p_n_E (the end of the
// data), an attribute of the medium's memory attr_p_ID. It is a Tape.
type Folder struct {
	fsys fs.FS
	part uint8
	at   uint64
}

// OpenFolder returns the cartridge in a folder.
func OpenFolder(fsys fs.FS) *Folder { return &Folder{fsys: fsys} }

func (f *Folder) has(part uint8, n uint64, kind byte) bool {
	_, err := fs.Stat(f.fsys, fmt.Sprintf("%d_%d_%c", part, n, kind))
	return err == nil
}

// Locate implements Tape.
func (f *Folder) Locate(_ context.Context, part uint8, object uint64) error {
	if !f.has(part, object, 'R') && !f.has(part, object, 'F') && !f.has(part, object, 'E') {
		return holdfast.Errorf(holdfast.NotExist, "locate in folder", "there is no object %d in partition %d", object, part)
	}
	f.part, f.at = part, object
	return nil
}

// Read implements Tape.
func (f *Folder) Read(_ context.Context, p []byte) (int, error) {
	const op = "read folder"
	if f.has(f.part, f.at, 'F') {
		f.at++
		return 0, holdfast.Errorf(holdfast.NotExist, op, "%w", drive.ErrFilemark)
	}
	r, err := f.fsys.Open(fmt.Sprintf("%d_%d_R", f.part, f.at))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, holdfast.Errorf(holdfast.NotExist, op, "%w", drive.ErrEndOfData)
	}
	if err != nil {
		return 0, holdfast.Errorf(holdfast.Offline, op, "%w", err)
	}
	n, err := io.ReadFull(r, p)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = nil
	} else if err == nil {
		if k, _ := r.Read(make([]byte, 1)); k > 0 {
			err = holdfast.Errorf(holdfast.Invalid, op, "a record longer than %d bytes", len(p))
		}
	}
	if e := r.Close(); err == nil {
		err = e
	}
	f.at++
	return n, err
}

// LastFile implements Tape.
func (f *Folder) LastFile(context.Context) error {
	end := uint64(0)
	for f.has(f.part, end, 'R') || f.has(f.part, end, 'F') {
		end++
	}
	for marks := 0; end > 0; end-- {
		if f.has(f.part, end-1, 'F') {
			if marks++; marks == 2 {
				break
			}
		}
	}
	f.at = end
	return nil
}

// Position implements Tape.
func (f *Folder) Position() (uint8, uint64, bool) { return f.part, f.at, true }

// Attributes implements Tape.
func (f *Folder) Attributes(_ context.Context, part uint8) (map[uint16]scsi.Attribute, error) {
	names, err := fs.Glob(f.fsys, fmt.Sprintf("attr_%d_*", part))
	if err != nil {
		return nil, err
	}
	out := map[uint16]scsi.Attribute{}
	for _, n := range names {
		id, err := strconv.ParseUint(n[strings.LastIndexByte(n, '_')+1:], 16, 16)
		if err != nil {
			continue // somebody else's file
		}
		b, err := fs.ReadFile(f.fsys, n)
		if err != nil {
			return nil, holdfast.Errorf(holdfast.Offline, "read folder", "%w", err)
		}
		list := append([]byte{byte(len(b) >> 24), byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}, b...)
		as, err := scsi.ParseAttributes(list)
		if err != nil || len(as) != 1 || as[0].ID != uint16(id) {
			return nil, corrupt("read folder", "attribute %s cannot be read", n)
		}
		out[as[0].ID] = as[0]
	}
	return out, nil
}
