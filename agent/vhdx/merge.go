package vhdx

import (
	"errors"

	"github.com/holdfast-backup/holdfast"
)

// Merge copies what a differencing VHDX holds down into its parent, in place; the parent grows if the child had. The child is only
// read and not removed. Neither file may be open for writing, but both may be open for reading, also as parents of a running
// disk: what that disk sees does not change.
//
// While it runs, the parent keeps its data id, so the child stays its child and Merge can be run again after a kill. At the end
// the parent takes over the child's data id, for that is whose contents it has now. So children of the child fit the parent
// (connect them with SetParent), the child itself still opens and reads the same until the parent is written to, and merging
// again does nothing. Other children of the parent do not fit any more: merge into a parent with one child only.
func Merge(child string) error { return merge(osFS{}, child) }

func merge(fs fileSystem, child string) error {
	c, err := openChain(fs, child)
	if err != nil {
		return err
	}
	err = mergeInto(fs, c)
	return errors.Join(err, c.Close())
}

func mergeInto(fs fileSystem, c *Disk) error {
	img, ok := c.layer.(*image)
	if !ok {
		return unsupported("%s is a VHD: only VHDX files are written", c.path)
	}
	if c.parent == nil {
		return holdfast.Errorf(holdfast.Invalid, "merge virtual disk", "%s is not a differencing disk", c.path)
	}
	if c.parent.info().DataWriteGUID == img.hdr.dataWrite {
		return nil
	}
	to, err := openLive(fs, c.parent.path)
	if err != nil {
		return err
	}
	to.m.keep = true
	return errors.Join(copyDown(img, to.m), to.m.close())
}

// copyDown does the work between two open files.
func copyDown(from *image, to *mutable) error {
	if err := from.verifyParent(&Disk{layer: to.image, path: to.path, parent: to.parent}); err != nil {
		return err
	}
	if err := to.begin(); err != nil {
		return err
	}
	if err := to.resize(from.p.size); err != nil {
		return err
	}
	buf := make([]byte, min(to.p.blockSize, 4*mib))
	err := from.walk(0, from.p.size, func(s seg) error {
		switch s.kind {
		case segZero:
			return to.zero(s.off, s.n)
		case segParent:
			return nil
		}
		for s.n > 0 {
			// Up to the next multiple of the buffer, so that small blocks are written whole.
			c := min(s.n, int64(len(buf))-s.off%int64(len(buf)))
			if err := from.readFile(buf[:c], s.file); err != nil {
				return err
			}
			if _, err := to.writeAt(buf[:c], s.off); err != nil {
				return err
			}
			s.off, s.file, s.n = s.off+c, s.file+c, s.n-c
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := to.sync(); err != nil {
		return err
	}
	return to.updateHeader(func(h *header) { h.dataWrite = from.hdr.dataWrite })
}
