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
