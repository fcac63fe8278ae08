package ingest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
)

// EventSetAnomaly tells that a set is unlike the VM's sets before: somebody should look what happened in the VM.
const EventSetAnomaly holdfast.EventType = "set-anomaly"

// What counts as unlike. A VM that is being encrypted changes everything it has, into bytes that do not compress.
const (
	anomalyHistory = 10       // incremental sets before that are looked at
	anomalyFew     = 3        // with fewer nothing is said
	anomalyBytes   = 16 << 20 // with less that changed nothing is said
	unusualShare   = 0.10     // of the disks changed …
	unusualTimes   = 5        // … and so many times the median
	denseNow       = 0.90     // what was sent, by what was read …
	denseUsual     = 0.60     // … and at most that in the median
)

// anomalies compares an incremental set with those of the same VM before, and says in a few words what is unusual; "" for nothing.
func anomalies(now holdfast.Stats, before []holdfast.Stats) string {
	if len(before) < anomalyFew || now.Changed < anomalyBytes || now.Logical <= 0 {
		return ""
	}
	var shares, densities []float64
	for _, s := range before {
		if s.Logical > 0 {
			shares = append(shares, float64(s.Changed)/float64(s.Logical))
		}
		if s.Read > 0 {
			densities = append(densities, float64(s.Sent)/float64(s.Read))
		}
	}
	var out []string
	share, usual := float64(now.Changed)/float64(now.Logical), median(shares)
	if share > unusualShare && share > unusualTimes*usual {
		out = append(out, fmt.Sprintf("%.0f %% of the disks changed, usually %.1f %%", share*100, usual*100))
	}
	if now.Read >= anomalyBytes && len(densities) >= anomalyFew {
		density, usual := float64(now.Sent)/float64(now.Read), median(densities)
		if density > denseNow && usual < denseUsual {
			out = append(out, fmt.Sprintf("what changed does not compress, usually to %.0f %%: it may be encrypted", usual*100))
		}
	}
	return strings.Join(out, "; ")
}

func median(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	slices.Sort(x)
	return x[len(x)/2]
}

// remark notes in the manifest what is unusual about a set that is about to be committed, and returns it.
func (b *backup) remark(m *holdfast.Manifest) string {
	if m.Kind != holdfast.Incremental {
		return ""
	}
	var before []holdfast.Stats
	err := b.s.o.Catalog.View(func(tx *catalog.Tx) error {
		for s, err := range tx.Sets(catalog.SetFilter{Pool: b.grant.PoolID, VM: b.grant.VM.ID, NewestFirst: true}) {
			if err != nil || len(before) == anomalyHistory {
				return err
			}
			if s.Manifest.Kind == holdfast.Incremental {
				before = append(before, s.Manifest.Stats)
			}
		}
		return nil
	})
	if err != nil {
		return "" // a remark is worth no failure
	}
	said := anomalies(m.Stats, before)
	if said != "" {
		m.Note = strings.TrimPrefix(m.Note+"; ", "; ") + "unusual: " + said
	}
	return said
}
