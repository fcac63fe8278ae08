package memory

import (
	"context"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
)

// Verify implements pools.Verifier: it decodes and re-hashes every group once, and then says which sets need the bad ones.
func (p *Pool) Verify(ctx context.Context, o pools.VerifyOptions) (pools.VerifyReport, error) {
	const op = "verify pool"
	var report pools.VerifyReport
	if err := p.lock(ctx, op); err != nil {
		return report, err
	}
	defer p.unlock()
	ids := o.Sets
	if len(ids) == 0 {
		ids = sorted(p.medium.sets)
	}
	need := map[holdfast.Digest]bool{}
	for _, id := range ids {
		r := p.medium.sets[id]
		if r == nil {
			return report, holdfast.Errorf(holdfast.NotExist, op, "set %s is not in this pool", id)
		}
		r.need(need)
	}
	bad, bytes := p.medium.bad(need)
	report.Sets, report.Chunks, report.Bytes = len(ids), int64(len(need)), bytes
	for _, id := range ids {
		r := p.medium.sets[id]
		m := r.decoded()
		for i := range m.Disks {
			report.Damaged = append(report.Damaged, damage(&m, &m.Disks[i], r.maps[m.Disks[i].ID], bad)...)
		}
	}
	return report, nil
}

// bad re-hashes the chunks of need and returns those that are not what they were, and the stored bytes read. The caller
// holds the mutex.
func (m *Medium) bad(need map[holdfast.Digest]bool) (bad map[holdfast.Digest]bool, bytes int64) {
	dec, h := chunk.NewDecoder(), m.domain.Hasher()
	bad = map[holdfast.Digest]bool{}
	for g := range m.groups {
		bytes += int64(len(g.Payload))
		plain, err := dec.Decode(&g.Group, nil)
		at := 0
		for _, c := range g.Chunks {
			if need[c.Digest] && m.where[c.Digest].g == g && (err != nil || h.Sum(plain[at:at+int(c.Len)]) != c.Digest) {
				bad[c.Digest] = true
			}
			at += int(c.Len)
		}
	}
	return bad, bytes
}

// damage lists the bad chunks of one disk with the extents that they fill.
func damage(m *holdfast.Manifest, d *holdfast.Disk, refs []holdfast.Ref, bad map[holdfast.Digest]bool) []pools.Damage {
	var out []pools.Damage
	at := map[holdfast.Digest]int{}
	for _, r := range refs {
		if !bad[r.Digest] {
			continue
		}
		i, ok := at[r.Digest]
		if !ok {
			i = len(out)
			at[r.Digest] = i
			out = append(out, pools.Damage{
				Where: "memory", Digest: r.Digest, Set: m.ID, VM: m.VM.Name, Disk: d.Name,
				Text: "the stored bytes do not have the chunk's digest",
			})
		}
		out[i].Extents = append(out[i].Extents, r.Extent)
	}
	return out
}
