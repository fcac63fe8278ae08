package drive

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// run executes a command that depends on the position or moves it. Anything but Good leaves the position unknown, unless the caller
// knows better. Unit attentions are not taken here: the command was not executed, and the place is not what it was.
func (d *Drive) run(ctx context.Context, c scsi.Command) (scsi.Result, *scsi.Error, error) {
	r, err := d.t.Exec(ctx, c)
	if err != nil {
		d.known = false
		return r, nil, fmt.Errorf("%w: %w", ErrLost, err)
	}
	if r.Status == scsi.Good {
		return r, nil, nil
	}
	err = r.Err(c.CDB)
	var e *scsi.Error
	errors.As(err, &e)
	switch {
	case r.Status != scsi.CheckCondition:
		return r, e, err // busy or reserved: not executed
	case e.Sense.Deferred:
		d.known = false
		return r, e, fmt.Errorf("%w: %w", ErrLost, err)
	case e.Sense.Key == scsi.UnitAttention:
		d.attention(e.Sense.Code)
		d.known = false
		return r, e, fmt.Errorf("%w: %w", ErrLost, err)
	case e.Sense.Key == scsi.Recovered:
		d.o.Log("%v", err)
		return r, nil, nil
	}
	return r, e, err
}

// Rewind goes to the beginning of partition 0. It finds a lost position again.
func (d *Drive) Rewind(ctx context.Context) error {
	if _, err := d.do(ctx, scsi.Command{CDB: scsi.Rewind()}); err != nil {
		d.known = false
		return err
	}
	d.part, d.object, d.known, d.warned = 0, 0, true, false
	return d.check(ctx)
}

// Read reads the next block into p and returns its length. ErrFilemark and ErrEndOfData are met as errors.Is tells; a filemark is then
// passed. A block longer than p is Invalid. A medium error leaves the drive lost.
func (d *Drive) Read(ctx context.Context, p []byte) (int, error) {
	const op = "read tape"
	if err := d.unlost(); err != nil {
		return 0, err
	}
	r, e, err := d.run(ctx, scsi.Command{CDB: scsi.Read(len(p)), In: p})
	if err == nil {
		d.object++
		return min(r.In, len(p)), nil
	}
	if e == nil || e.Status != scsi.CheckCondition || !d.known {
		return 0, err
	}
	s := &e.Sense
	switch {
	case s.Filemark && s.Key == scsi.NoSense:
		d.object++
		return 0, holdfast.Errorf(holdfast.NotExist, op, "%w", ErrFilemark)
	case s.AtEndOfData():
		return 0, holdfast.Errorf(holdfast.NotExist, op, "%w", ErrEndOfData)
	case s.ILI && s.Key == scsi.NoSense && s.HasInfo && s.Info >= 0 && s.Info <= int64(len(p)):
		d.object++
		return len(p) - int(s.Info), nil // never from the transport's count, which may be wrong
	case s.ILI && s.Key == scsi.NoSense:
		d.object++
		return 0, holdfast.Errorf(holdfast.Invalid, op, "a block longer than %d bytes", len(p))
	}
	if s.Key != scsi.DataProtect { // without the key nothing has moved
		d.known = false
	}
	return 0, err
}

// Write writes a block. With ErrFull it was not written. Everything else than nil leaves the drive lost, except where nothing was tried.
func (d *Drive) Write(ctx context.Context, p []byte) error {
	const op = "write tape"
	if err := d.unlost(); err != nil {
		return err
	}
	if len(p) == 0 || len(p) > d.caps.MaxBlock {
		return holdfast.Errorf(holdfast.Invalid, op, "a block of %d bytes; the drive takes 1 to %d", len(p), d.caps.MaxBlock)
	}
	_, e, err := d.run(ctx, scsi.Command{CDB: scsi.Write(len(p)), Out: p})
	return d.wrote(1, e, err)
}

// wrote counts n objects after a write.
func (d *Drive) wrote(n uint64, e *scsi.Error, err error) error {
	switch {
	case err == nil:
	case e != nil && e.Status == scsi.CheckCondition && d.known && e.Sense.EarlyWarning():
		d.warned = true
	case e != nil && d.known && e.Sense.Key == scsi.VolumeOverflow:
		d.warned = true
		return holdfast.Errorf(holdfast.NoSpace, "write tape", "%w", ErrFull)
	case e != nil && d.known && (e.Status != scsi.CheckCondition || e.Sense.Key == scsi.DataProtect || e.Sense.Key == scsi.IllegalRequest):
		return err // not executed
	default:
		d.known = false
		return err
	}
	d.object += n
	return nil
}

// Filemarks writes n filemarks into the drive's buffer.
func (d *Drive) Filemarks(ctx context.Context, n int) error {
	if err := d.unlost(); err != nil {
		return err
	}
	_, e, err := d.run(ctx, scsi.Command{CDB: scsi.WriteFilemarks(n, true)})
	if err != nil && cannot(err) && d.known { // a drive that does not know the immediate bit
		_, e, err = d.run(ctx, scsi.Command{CDB: scsi.WriteFilemarks(n, false)})
	}
	return d.wrote(uint64(n), e, err)
}

// Flush writes n filemarks, waits until everything is on the medium, and compares the position. When it returns nil, all of it is there for good.
func (d *Drive) Flush(ctx context.Context, n int) error {
	if err := d.unlost(); err != nil {
		return err
	}
	_, e, err := d.run(ctx, scsi.Command{CDB: scsi.WriteFilemarks(n, false)})
	if err := d.wrote(uint64(n), e, err); err != nil {
		return err
	}
	if err := d.check(ctx); err != nil {
		return err
	}
	d.flushed = d.object
	return nil
}

// Locate goes to an object of a partition, by what the drive can do. It finds a lost position again. A place behind the end of data is NotExist.
func (d *Drive) Locate(ctx context.Context, partition uint8, object uint64) error {
	if d.known && d.part == partition && d.object == object {
		return nil
	}
	var cdb []byte
	switch {
	case d.caps.Locate == Locate16:
		cdb = scsi.Locate16(partition, object)
	case d.caps.Locate == Locate10 && object < 1<<32:
		cdb = scsi.Locate10(partition, uint32(object))
	case partition != 0:
		return holdfast.Errorf(holdfast.Unsupported, "locate on tape", "the drive cannot change partitions")
	default:
		return d.count(ctx, object)
	}
	d.known = false
	if _, err := d.do(ctx, scsi.Command{CDB: cdb}); err != nil {
		return err
	}
	d.part, d.object, d.known, d.warned = partition, object, true, false
	return d.check(ctx)
}

// count goes to an object by reading over everything before it. Spacing over blocks stops at filemarks on some drives and not on
// others, where it cannot be told how far it came; a read says what it met.
func (d *Drive) count(ctx context.Context, object uint64) error {
	if !d.known || d.part != 0 || d.object > object {
		if err := d.Rewind(ctx); err != nil {
			return err
		}
	}
	buf := make([]byte, MaxBlock)
	for d.object < object {
		if _, err := d.Read(ctx, buf); err != nil && !errors.Is(err, ErrFilemark) {
			return err
		}
	}
	return nil
}

// NextFile goes behind the next filemark. ErrEndOfData where there is none.
func (d *Drive) NextFile(ctx context.Context) error {
	if err := d.unlost(); err != nil {
		return err
	}
	if d.caps.Position < 0 { // nobody would say how many blocks were passed
		buf := make([]byte, MaxBlock)
		for {
			if _, err := d.Read(ctx, buf); errors.Is(err, ErrFilemark) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	_, e, err := d.run(ctx, scsi.Command{CDB: scsi.Space6(scsi.SpaceFilemarks, 1)})
	if err != nil && (e == nil || !d.known || e.Sense.Key != scsi.BlankCheck) {
		d.known = false
		return err
	}
	p, perr := d.ask(ctx, byte(d.caps.Position))
	if perr != nil {
		d.known = false
		return perr
	}
	d.part, d.object, d.known = p.Partition, p.Object, !p.Unknown
	if err != nil {
		return holdfast.Errorf(holdfast.NotExist, "space over tape", "%w", ErrEndOfData)
	}
	return nil
}

// EndOfData goes to the end of the data of the partition at hand. Where the drive says its position that is quick. A missing end-of-data
// mark, as a power cut leaves it, is an error of kind Corrupt; the place is then lost.
func (d *Drive) EndOfData(ctx context.Context) error {
	if d.caps.Position < 0 {
		if !d.known {
			if err := d.Rewind(ctx); err != nil {
				return err
			}
		}
		for {
			if err := d.NextFile(ctx); errors.Is(err, ErrEndOfData) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	d.known = false
	if _, err := d.do(ctx, scsi.Command{CDB: scsi.Space6(scsi.SpaceEndOfData, 0)}); err != nil {
		var e *scsi.Error
		if !errors.As(err, &e) || e.Sense.Key != scsi.BlankCheck {
			return err
		}
	}
	p, err := d.ask(ctx, byte(d.caps.Position))
	if err != nil {
		return err
	}
	if p.Unknown {
		return lost("the drive does not know where the data ends")
	}
	d.part, d.object, d.known = p.Partition, p.Object, true
	return nil
}

// Unload flushes, rewinds and lets the medium go.
func (d *Drive) Unload(ctx context.Context) error {
	if err := d.Prevent(ctx, false); err != nil && !cannot(err) {
		return err
	}
	d.known, d.probed = false, false
	_, err := d.do(ctx, scsi.Command{CDB: scsi.LoadUnload(false)})
	return err
}

// Prevent forbids that the medium is taken out, or allows it again.
func (d *Drive) Prevent(ctx context.Context, on bool) error {
	_, err := d.do(ctx, scsi.Command{CDB: scsi.PreventRemoval(on)})
	return err
}

// Format makes the medium blank, with one partition or with two of which partition 0 has first GB. Everything on it is lost.
func (d *Drive) Format(ctx context.Context, two bool, first uint16) error {
	if err := d.Rewind(ctx); err != nil {
		return err
	}
	kind := byte(0)
	if two {
		kind = 1
		p := scsi.SetPartitions(first, 9)
		if _, err := d.do(ctx, scsi.Command{CDB: scsi.ModeSelect6(len(p)), Out: p}); err != nil {
			return err
		}
	}
	d.known = false
	if _, err := d.do(ctx, scsi.Command{CDB: scsi.FormatMedium(kind)}); err != nil {
		return err
	}
	return d.Rewind(ctx)
}

// LastFile goes to the first block of the last tape file that a filemark closes, by going back from the end of the data. Unsupported where the drive does not say
// its position: only reading from the front finds it then.
func (d *Drive) LastFile(ctx context.Context) error {
	if d.caps.Position < 0 {
		return holdfast.Errorf(holdfast.Unsupported, "space over tape", "the drive does not say its position")
	}
	if err := d.EndOfData(ctx); err != nil {
		return err
	}
	if _, e, err := d.run(ctx, scsi.Command{CDB: scsi.Space6(scsi.SpaceFilemarks, -2)}); err != nil {
		d.known = false
		if e == nil || e.Sense.Key != scsi.NoSense || !e.Sense.EOM {
			return err
		}
		return d.Locate(ctx, d.part, 0)
	}
	p, err := d.ask(ctx, byte(d.caps.Position))
	if err != nil || p.Unknown {
		d.known = false
		return errors.Join(err, ErrLost)
	}
	d.object, d.known = p.Object, true
	_, err = d.Read(ctx, make([]byte, 1)) // over the filemark
	if !errors.Is(err, ErrFilemark) {
		return holdfast.Errorf(holdfast.Corrupt, "space over tape", "no filemark where one was passed: %v", err)
	}
	return nil
}
