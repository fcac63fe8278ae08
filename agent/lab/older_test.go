package lab

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

// TestOlderReferencePointsStayGood: after any number of backups the changes since each of the newest 32 reference points cover every byte that
// differs, and hardly more; older ones are unknown, and their records are gone; a resized disk has none that is good.
func TestOlderReferencePointsStayGood(t *testing.T) {
	const size, rounds = 4 << 20, maxOlder + 3
	seed := uint64(rand.Uint32())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 9))
	h, vm := newLab(t, makeDisk(t, size, 1, vhdx.CreateOptions{}))
	type point struct {
		token   string
		content []byte
		written int64 // since
		pieces  int64
	}
	var points []*point
	for range rounds {
		n := int64(512 * (1 + r.IntN(100)))
		write(t, h, vm, 0, 512*r.Int64N((size-n)/512), random(r.Uint64(), int(n)))
		cp := h.mustCheckpoint(t, vm)
		d := cp.Disks()[0]
		now := frozen(t, d)
		for i, p := range points {
			p.written, p.pieces = p.written+n, p.pieces+1
			es, err := d.Changes(t.Context(), p.token)
			if back := len(points) - i; back > maxOlder+1 {
				if !errors.Is(err, hv.ErrTokenUnknown) {
					t.Fatalf("%d backups back: %v", back, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			es = es.Normal(size)
			for _, gap := range (holdfast.Extents{{Off: 0, Len: size}}).Subtract(es) {
				if !bytes.Equal(p.content[gap.Off:gap.End()], now[gap.Off:gap.End()]) {
					t.Fatalf("a change in %v is not in the changes since %d backups", gap, len(points)-i)
				}
			}
			if es.Total() > p.written+p.pieces*2*granularity {
				t.Fatalf("%d bytes said to be changed since %d backups, %d written", es.Total(), len(points)-i, p.written)
			}
		}
		tokens, err := cp.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, &point{token: tokens[d.Meta().ID], content: now})
	}
	if files, err := filepath.Glob(filepath.Join(h.dir, "vm", trackingDir, "*.track")); err != nil || len(files) > maxOlder+2 {
		t.Errorf("%d records are kept (%v)", len(files), err)
	}
	if err := h.Resize(t.Context(), "vm", 0, 2*size); err != nil {
		t.Fatal(err)
	}
	cp := h.mustCheckpoint(t, vm)
	for _, p := range points[len(points)-maxOlder-1:] {
		if _, err := cp.Disks()[0].Changes(t.Context(), p.token); !errors.Is(err, hv.ErrResized) {
			t.Errorf("a resized disk: %v", err)
		}
	}
	if err := cp.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
}
