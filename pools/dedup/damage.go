package dedup

import (
	"fmt"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// groupOrdinals lists the chunks of a group.
func groupOrdinals(g *container.Group) []uint32 {
	out := make([]uint32, g.Count)
	for i := range out {
		out[i] = g.First + uint32(i)
	}
	return out
}

// markBad takes damaged chunks out of deduplication at once, so that the next backup that has them stores them anew. The mark is
// durable where kv is well; one that is lost is found again.
func (p *Pool) markBad(c *cont, ordinals []uint32, cause error) {
	p.setBad(c, ordinals, true)
	p.listener.Emit(holdfast.Event{Type: holdfast.EventChunkCorrupt, Severity: holdfast.Alarm,
		Text:   fmt.Sprintf("%d chunks in container %s are damaged: %v", len(ordinals), hex16(c.id), cause),
		Fields: map[string]string{"pool": p.sb.Pool.String(), "container": contName(c.id)}})
}

// setBad sets or takes back the marks of chunks.
func (p *Pool) setBad(c *cont, ordinals []uint32, bad bool) {
	p.mu.Lock()
	changed := false
	for _, o := range ordinals {
		if c.bad.get(o) == bad {
			continue
		}
		if c.bad == nil {
			c.bad = newBitmap(c.n)
		}
		changed = true
		if bad {
			c.bad.set(o)
		} else {
			c.bad.clear(o)
		}
	}
	if changed && bad {
		p.badGen++
	}
	u := markUpdate{id: c.id, n: c.n, dead: slices.Clone(c.dead), bad: slices.Clone(c.bad)}
	p.mu.Unlock()
	if changed {
		_ = p.st.mark([]markUpdate{u}) // memory has it; what is lost is found again
	}
}
