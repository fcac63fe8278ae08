package ltfs

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// Copied is what Copy has copied.
type Copied struct {
	UUID    string `json:"uuid"`
	Records int64  `json:"records"`
	Marks   int64  `json:"filemarks"`
	Bytes   int64  `json:"bytes"`
}

// memory is what of the medium's memory goes with a volume: what software writes. The rest is the medium's own.
var memory = []uint16{scsi.AttrAppVendor, scsi.AttrAppName, scsi.AttrAppVersion, scsi.AttrMediumText, scsi.AttrLocalization, scsi.AttrBarcode, scsi.AttrMediaPool,
	scsi.AttrAppFormat, scsi.AttrLockState}

// Copy copies a volume as it is, object by object, to a blank medium with two partitions: between a cartridge and a folder of the reference
// implementation's layout, either way. What is wrong with the volume is copied too, so that a checker can judge it. The index partition comes
// last and the medium's memory after it: a copy that was cut off is no volume. Exist: the target is not blank.
func Copy(ctx context.Context, from Tape, to Medium) (Copied, error) {
	const op = "copy LTFS volume"
	var c Copied
	v, err := Open(ctx, from)
	if err != nil {
		return c, err
	}
	c.UUID = v.Label.UUID
	buf := make([]byte, drive.MaxBlock)
	for _, p := range []uint8{1, 0} {
		if err := to.Locate(ctx, p, 0); err != nil {
			return c, err
		}
		if _, err := to.Read(ctx, buf); !errors.Is(err, drive.ErrEndOfData) {
			if err == nil || errors.Is(err, drive.ErrFilemark) || holdfast.KindOf(err) == holdfast.Invalid {
				err = holdfast.Errorf(holdfast.Exist, op, "partition %d of the target is not blank", p).Advise("erase the cartridge, or choose an empty folder")
			}
			return c, err
		}
	}
	data := v.parts[v.Label.Data]
	for _, p := range []uint8{data, 1 - data} {
		if err := c.partition(ctx, from, to, p, buf); err != nil {
			return c, err
		}
	}
	return c, c.memory(ctx, from, to)
}

// partition copies one partition and has it on the medium at the end.
func (c *Copied) partition(ctx context.Context, from Tape, to Medium, p uint8, buf []byte) error {
	if err := from.Locate(ctx, p, 0); err != nil {
		return err
	}
	if err := to.Locate(ctx, p, 0); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return holdfast.Errorf(holdfast.Cancelled, "copy LTFS volume", "%w", err)
		}
		n, err := from.Read(ctx, buf)
		switch {
		case errors.Is(err, drive.ErrEndOfData):
			return to.Flush(ctx, 0)
		case errors.Is(err, drive.ErrFilemark):
			if err := to.Filemarks(ctx, 1); err != nil {
				return err
			}
			c.Marks++
		case err != nil:
			return err
		default:
			if err := to.Write(ctx, buf[:n]); err != nil {
				return err
			}
			c.Records, c.Bytes = c.Records+1, c.Bytes+int64(n)
		}
	}
}

// memory copies what software wrote into the medium's memory. The coherency information gets the target's change reference, so that who
// mounts it believes it as far as the source's could be believed.
func (c *Copied) memory(ctx context.Context, from Tape, to Medium) error {
	there, err := to.Attributes(ctx, 0)
	if holdfast.KindOf(err) == holdfast.Unsupported && err != nil {
		return nil // a drive without access to it: volumes are found without
	}
	if err != nil {
		return err
	}
	ref := there[scsi.AttrChangeRef]
	now, _ := ref.Uint()
	source, err := from.Attributes(ctx, 0)
	if err != nil && holdfast.KindOf(err) != holdfast.Unsupported {
		return err
	}
	ref = source[scsi.AttrChangeRef]
	then, _ := ref.Uint()
	for p := range uint8(2) {
		as, err := from.Attributes(ctx, p)
		if err != nil && holdfast.KindOf(err) != holdfast.Unsupported {
			return err
		}
		var out []scsi.Attribute
		for _, id := range slices.Sorted(maps.Keys(as)) {
			a := as[id]
			if slices.Contains(memory, id) {
				out = append(out, scsi.Attribute{ID: id, Format: a.Format, Value: a.Value})
			}
			if id != scsi.AttrCoherency {
				continue
			}
			if h, err := ParseCoherency(a.Value); err == nil && h.Change == then {
				h.Change = now
				a.Value = h.Encode()
			}
			out = append(out, scsi.Attribute{ID: id, Value: a.Value})
		}
		if len(out) > 0 {
			if err := to.SetAttributes(ctx, p, out...); err != nil {
				return err
			}
		}
	}
	return nil
}
