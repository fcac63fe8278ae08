package standard

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// likeTries is how many sets are tried as the one to compare with: records can be damaged, and VMs can share the beginning of an id.
const likeTries = 4

// rereads reports whether a set without a parent is one of a VM that was backed up before: a disk was read whole because its
// changes were not to be had, so that most of it is in the pool. Who asks for a full, or backs up a disk for the first time, gets
// data files that no other set has a part in.
func rereads(m *holdfast.Manifest) bool {
	for i := range m.Disks {
		switch m.Disks[i].Reason {
		case holdfast.ReasonRequested:
			return false
		case "", holdfast.ReasonFirst, holdfast.ReasonNewDisk:
		default:
			return true
		}
	}
	return false
}

// findLike leases the VM's newest set as the one that what is read is compared with. Nothing depends on there being one: a set whose
// record cannot be read is passed over.
func (s *session) findLike(ctx context.Context, op string) error {
	for _, st := range s.p.setsOf(s.begun.VM.ID, likeTries) {
		if err := alive(ctx, op); err != nil {
			return err
		}
		s.p.mu.Lock()
		there := s.p.sets[st.id] == st
		if there {
			s.p.lease(st)
		}
		s.p.mu.Unlock()
		if !there {
			continue
		}
		rec, err := s.p.record(ctx, st)
		if err == nil && rec.manifest.VM.ID == s.begun.VM.ID {
			s.parent, s.inherit = st, rec
			return nil
		}
		s.p.unlease(ctx, st)
	}
	return alive(ctx, op)
}

// setsOf returns the newest sets, at most n, that are a VM's by the names of their folders.
func (p *Pool) setsOf(vm holdfast.VMID, n int) []*setState {
	end := fmt.Sprintf("-%.8s", vm)
	var found []*setState
	p.mu.Lock()
	for _, st := range p.sets {
		if strings.HasSuffix(path.Dir(st.folder), end) {
			found = append(found, st)
		}
	}
	p.mu.Unlock()
	slices.SortFunc(found, func(a, b *setState) int { return cmp.Compare(path.Base(b.folder), path.Base(a.folder)) })
	return found[:min(n, len(found))]
}
