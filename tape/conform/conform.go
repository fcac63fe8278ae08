// Package conform has the command transcripts that every tape library must answer in the same way: what keeps the emulator of
// package emu honest, since the same list runs against an independent target. Where that one differs, each difference is named with the
// answer it gives instead (Deviations), so that nothing new slips in and nothing cured stays on the list.
//
// It owns no device: a caller hands it a drive with a scratch cartridge in a slot. What is on the cartridge is lost. It imports scsi only.
package conform

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Rig is what transcripts run on: a changer with an empty drive, a scratch cartridge in Slot, and Other, another full slot.
type Rig struct {
	Tape, Changer            scsi.Transport
	Drive, Slot, Other, Hole uint16 // Hole: an address that the changer does not have
}

// A Step is one command of a transcript and the answer that the standards ask for.
type Step struct {
	CDB  []byte
	Out  []byte
	In   int // room for bytes
	Want string
	To   bool // to the changer
}

// A Transcript is a named list of steps.
type Transcript struct {
	Name  string
	Steps []Step
}

// Deviations names answers of a target that are other than the standard's, by "transcript/step", step from 1.
type Deviations map[string]struct{ Answer, Why string }

// T is what Run reports to.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
}

// Run runs the transcripts in order and reports every answer that is neither the standard's nor a known deviation, and every
// known deviation that did not show.
func Run(ctx context.Context, t T, r Rig, known Deviations) {
	t.Helper()
	seen := map[string]bool{}
	calm(ctx, r.Tape)
	calm(ctx, r.Changer)
	for _, tr := range Transcripts(r) {
		for i, s := range tr.Steps {
			id := fmt.Sprintf("%s/%d", tr.Name, i+1)
			got := answer(ctx, r, s)
			d, deviates := known[id]
			seen[id] = true
			switch {
			case deviates && got == d.Answer:
				t.Logf("known deviation %s: %s answers %q, not %q: %s", id, scsi.Name(s.CDB), got, s.Want, d.Why)
			case deviates:
				t.Errorf("%s: %s answers %q; the list of deviations says %q, the standard %q", id, scsi.Name(s.CDB), got, d.Answer, s.Want)
			case got != s.Want:
				t.Errorf("%s: %s (%x) answers %q, want %q", id, scsi.Name(s.CDB), s.CDB, got, s.Want)
			}
		}
	}
	for id := range known {
		if !seen[id] {
			t.Errorf("deviation %s belongs to no step", id)
		}
	}
}

// calm takes the unit attentions that wait for somebody new.
func calm(ctx context.Context, t scsi.Transport) {
	for range 8 {
		r, err := t.Exec(ctx, scsi.Command{CDB: scsi.TestUnitReady()})
		if s, _ := scsi.ParseSense(r.Sense); err != nil || r.Status == scsi.Good || s.Key != scsi.UnitAttention {
			return
		}
	}
}

// answer executes a step and puts the answer into words: the status or sense and, of a block, its length and what it is made of.
func answer(ctx context.Context, r Rig, s Step) string {
	unit := r.Tape
	if s.To {
		unit = r.Changer
	}
	c := scsi.Command{CDB: s.CDB, Out: s.Out}
	if s.In > 0 {
		c.In = make([]byte, s.In)
	}
	res, err := unit.Exec(ctx, c)
	if err != nil {
		return "error: " + err.Error()
	}
	var b strings.Builder
	n := res.In
	if res.Status != scsi.Good {
		n = 0
		sense, ok := scsi.ParseSense(res.Sense)
		if !ok {
			return res.Status.String()
		}
		fmt.Fprintf(&b, "%v %02x/%02x", sense.Key, uint8(sense.Code>>8), uint8(sense.Code))
		for _, f := range []struct {
			on   bool
			text string
		}{{sense.Filemark, " FM"}, {sense.EOM, " EOM"}, {sense.ILI, " ILI"}} {
			if f.on {
				b.WriteString(f.text)
			}
		}
		if sense.HasInfo {
			fmt.Fprintf(&b, " %d", sense.Info)
		}
		if sense.ILI && sense.HasInfo {
			n = int(min(int64(s.In), int64(s.In)-sense.Info)) // never by the transport's count
		}
	} else {
		b.WriteString("good")
	}
	if s.CDB[0] == scsi.OpRead6 && n > 0 {
		p := c.In[:n]
		kind := "mixed"
		if bytes.Count(p, p[:1]) == len(p) {
			kind = string(rune(p[0]))
		}
		fmt.Fprintf(&b, " %d%s", n, kind)
	}
	if s.CDB[0] == scsi.OpReadPosition && res.Status == scsi.Good {
		p, err := scsi.ParsePosition(s.CDB[1], c.In[:n])
		if err != nil {
			return "unreadable position"
		}
		if p.Unknown {
			b.WriteString(" unknown")
		} else {
			fmt.Fprintf(&b, " %d:%d", p.Partition, p.Object)
		}
	}
	return b.String()
}
