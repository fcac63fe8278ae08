package ingest

import (
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// Goal: a set that changed far more than its VM's sets before, or into bytes that do not compress, is remarked upon; an ordinary one, one with little
// history and a small one are not.
func TestUnusualSetsAreNoted(t *testing.T) {
	const gib = 1 << 30
	day := holdfast.Stats{Logical: 100 * gib, Changed: gib, Read: gib, Sent: gib / 3}
	week := []holdfast.Stats{day, day, day, day, {Logical: 100 * gib, Changed: 4 * gib, Read: 4 * gib, Sent: gib}}
	for name, c := range map[string]struct {
		now    holdfast.Stats
		before []holdfast.Stats
		want   []string
	}{
		"an ordinary day":      {day, week, nil},
		"a patch day":          {holdfast.Stats{Logical: 100 * gib, Changed: 4 * gib, Read: 4 * gib, Sent: gib}, week, nil},
		"everything encrypted": {holdfast.Stats{Logical: 100 * gib, Changed: 60 * gib, Read: 60 * gib, Sent: 59 * gib}, week, []string{"60 % of the disks changed, usually 1.0 %", "does not compress"}},
		"a database reindexed": {holdfast.Stats{Logical: 100 * gib, Changed: 30 * gib, Read: 30 * gib, Sent: 9 * gib}, week, []string{"30 % of the disks"}},
		"a film":               {holdfast.Stats{Logical: 100 * gib, Changed: 2 * gib, Read: 2 * gib, Sent: 2 * gib}, week, []string{"does not compress"}},
		"no history":           {holdfast.Stats{Logical: 100 * gib, Changed: 60 * gib, Read: 60 * gib, Sent: 60 * gib}, week[:2], nil},
		"a small disk":         {holdfast.Stats{Logical: 10 << 20, Changed: 9 << 20, Read: 9 << 20, Sent: 9 << 20}, week, nil},
	} {
		got := anomalies(c.now, c.before)
		for _, w := range c.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q does not say %q", name, got, w)
			}
		}
		if len(c.want) == 0 && got != "" || len(c.want) == 1 && strings.Contains(got, ";") {
			t.Errorf("%s: %q", name, got)
		}
	}
}
