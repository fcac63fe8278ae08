package pools

import (
	"github.com/holdfast-backup/holdfast"
)

// What follows is for drivers: the rules of the interface that are the same for each of them.

// CheckRefs refuses refs that are not ascending, overlap one another or what was placed before (up to the byte end), or reach
// outside a disk of size bytes. Whether the chunks are there and long enough is the driver's to check. The error is Invalid.
func CheckRefs(refs []holdfast.Ref, end, size int64) error {
	const op = "check refs"
	for i, r := range refs {
		switch {
		case r.Len <= 0 || r.Off < 0 || r.Off > size || r.Len > size-r.Off:
			return holdfast.Errorf(holdfast.Invalid, op, "ref %d: %d bytes at %d of a disk of %d bytes", i, r.Len, r.Off, size)
		case r.Off < end:
			return holdfast.Errorf(holdfast.Invalid, op, "ref %d begins at %d, but the disk is placed up to %d", i, r.Off, end)
		case r.Digest.IsZero() && r.Skip != 0:
			return holdfast.Errorf(holdfast.Invalid, op, "ref %d: zeros with %d bytes skipped", i, r.Skip)
		case !r.Digest.IsZero() && int64(r.Skip)+r.Len > holdfast.MaxChunk:
			return holdfast.Errorf(holdfast.Invalid, op, "ref %d: bytes up to %d of a chunk; chunks have at most %d",
				i, int64(r.Skip)+r.Len, holdfast.MaxChunk)
		}
		end = r.End()
	}
	return nil
}

// CutRef returns the part of r from byte off of the disk up to byte end; both lie in r's extent.
func CutRef(r holdfast.Ref, off, end int64) holdfast.Ref {
	c := holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: end - off}, Digest: r.Digest}
	if !r.Digest.IsZero() {
		c.Skip = r.Skip + uint32(off-r.Off)
	}
	return c
}

// Overlay returns fresh over old: every byte of [0, size) that fresh does not name is as old has it. Both are ascending and of one driver's kind of refs; extent
// tells where on the disk one lies, and cut returns the part of one between two offsets in it.
func Overlay[R any](old, fresh []R, size int64, extent func(R) holdfast.Extent, cut func(r R, off, end int64) R) []R {
	out := make([]R, 0, len(old)+len(fresh))
	at := int64(0) // up to here out is complete
	fill := func(to int64) {
		for len(old) > 0 {
			e := extent(old[0])
			if e.Off >= to {
				break
			}
			if off, end := max(at, e.Off), min(to, e.End()); off < end {
				out = append(out, cut(old[0], off, end))
			}
			if e.End() > to {
				break // the rest of it may come after what lies over it
			}
			old = old[1:]
		}
		at = to
	}
	for _, r := range fresh {
		e := extent(r)
		fill(e.Off)
		out = append(out, r)
		at = e.End()
	}
	fill(size)
	return out
}

// SameSet refuses a final manifest that is not of the set that was begun: ID, kind, parent and the disks' ID, Size and
// Inherit may not have changed, nor the disks' order. It checks the bounds too. The error is Invalid.
func SameSet(begun, final holdfast.Manifest) error {
	const op = "check final manifest"
	if err := final.Check(); err != nil {
		return err
	}
	if final.ID != begun.ID || final.Kind != begun.Kind || final.Parent != begun.Parent || len(final.Disks) != len(begun.Disks) {
		return holdfast.Errorf(holdfast.Invalid, op, "it is not of the set %s that was begun", begun.ID)
	}
	for i, d := range final.Disks {
		if b := begun.Disks[i]; d.ID != b.ID || d.Size != b.Size || d.Inherit != b.Inherit {
			return holdfast.Errorf(holdfast.Invalid, op, "disk %s is not as it was begun", d.ID)
		}
	}
	return nil
}
