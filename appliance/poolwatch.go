package appliance

import (
	"fmt"
	"math"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
)

const (
	nearFull = 0.80 // of a pool's space: somebody should think of more
	veryFull = 0.90 // … now
	// clearBelow is how far a pool must fall below a threshold before it counts as crossed back, so that one on the edge does not warn all day.
	clearBelow = 0.02
	// watchEvery is how often the pools' space is looked at.
	watchEvery = time.Minute
)

// A poolWatch warns once when a pool crosses a threshold of its space, and once when it is below again. What was warned about is kept, so that a
// restart does not say it anew.
type poolWatch struct {
	s    *Service
	kick chan struct{}
}

func newPoolWatch(s *Service) *poolWatch { return &poolWatch{s: s, kick: make(chan struct{}, 1)} }

// look asks for the pools to be looked at soon.
func (w *poolWatch) look() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// run looks at the pools until the daemon stops.
func (w *poolWatch) run() {
	d := w.s.d
	for {
		late, stop := d.c.Clock.After(watchEvery)
		select {
		case <-late:
		case <-w.kick:
		case <-d.ctx.Done():
		}
		stop()
		if d.ctx.Err() != nil {
			return
		}
		recs, err := w.s.poolRecords()
		if err != nil {
			continue // the catalog says by itself when it has failed
		}
		for _, rec := range recs {
			w.pool(rec)
		}
	}
}

// pool looks at one pool. One that is offline is left as it is.
func (w *poolWatch) pool(rec catalog.Pool) {
	ctx := w.s.d.ctx
	p, err := w.s.d.shelf.Pool(ctx, rec.ID)
	if err != nil {
		return
	}
	u, err := p.Usage(ctx)
	if err != nil {
		return
	}
	o, err := w.s.poolOptions(rec.ID)
	if err != nil {
		return
	}
	part := filled(o.Quota, u)
	level := levelOf(part, o.Level)
	if level == o.Level {
		return
	}
	if err := w.s.changeOptions(ctx, rec.ID, func(o *poolOptions) { o.Level = level }); err != nil {
		return // told when it can be kept: once
	}
	for _, t := range []int{percent(nearFull), percent(veryFull)} {
		switch {
		case o.Level < t && t <= level:
			w.s.d.events.Emit(nearFullEvent(rec.Name, part, 0, t))
		case level < t && t <= o.Level:
			w.s.d.events.Emit(nearFullEvent(rec.Name, part, t, 0))
		}
	}
}

// levelOf returns the threshold in percent that a pool is above, 0 for none; it was above the threshold was before.
func levelOf(part float64, was int) int {
	for _, t := range []float64{veryFull, nearFull} {
		if part >= t || was >= percent(t) && part > t-clearBelow {
			return percent(t)
		}
	}
	return 0
}

func percent(part float64) int { return int(math.Round(part * 100)) }

// nearFullEvent tells that a pool went from one threshold, 0 for none, to another.
func nearFullEvent(name string, part float64, was, level int) holdfast.Event {
	e := holdfast.Event{Type: holdfast.EventPoolNearFull, Severity: holdfast.Warning,
		Fields: map[string]string{"pool": name, "threshold": fmt.Sprint(level), "percent": fmt.Sprintf("%.0f", part*100), "state": "crossed"}}
	if level < was {
		e.Severity, e.Fields["threshold"], e.Fields["state"] = holdfast.Info, fmt.Sprint(was), "cleared"
		e.Text = fmt.Sprintf("pool %s is below %d %% again: %.0f %% full", name, was, part*100)
		return e
	}
	if level >= percent(veryFull) {
		e.Severity = holdfast.Alarm
	}
	e.Text = fmt.Sprintf("pool %s is %.0f %% full: delete sets and run 'holdfast pool gc', or give it more space", name, part*100)
	return e
}
