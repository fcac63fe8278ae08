package restore

import (
	"slices"
	"time"
)

// A Copy is one set that could be restored.
type Copy struct {
	Created  time.Time
	Pool     string
	Damaged  bool
	Verified bool
	Source   Source
}

// Best chooses among copies: the newest point in time of which a copy can be read, and of that point a verified copy before one that nobody has
// read back. If newer points cannot be read, the choice carries a warning; if none can, it is the newest and its plan is refused. It reports
// false for no copies.
func Best(copies []Copy) (Source, bool) {
	if len(copies) == 0 {
		return Source{}, false
	}
	cs := slices.Clone(copies)
	fit := func(c *Copy) bool { return !c.Damaged && c.Source.Problem == "" }
	rank := func(c *Copy) int {
		if c.Verified {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(cs, func(a, b Copy) int {
		if n := b.Created.Compare(a.Created); n != 0 {
			return n
		}
		return rank(&a) - rank(&b)
	})
	i := slices.IndexFunc(cs, func(c Copy) bool { return fit(&c) })
	if i < 0 {
		return cs[0].Source, true
	}
	src := cs[i].Source
	p := Plan{}
	switch {
	case cs[0].Created.After(cs[i].Created):
		p.warn("older-point", "name a set to choose yourself", "the point in time %s in pool %s is passed over: %s", cs[0].Created.UTC().Format(time.RFC3339), cs[0].Pool, whyNot(&cs[0]))
	case i > 0:
		p.info("other-copy", "the copy in pool %s is passed over: %s", cs[0].Pool, whyNot(&cs[0]))
	}
	src.Remarks = append(slices.Clone(src.Remarks), p.Findings...)
	return src, true
}

func whyNot(c *Copy) string {
	if c.Damaged {
		return "it was found damaged when it was read back"
	}
	return "the pool cannot be read: " + c.Source.Problem
}
