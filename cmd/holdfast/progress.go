package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const (
	frameEvery = 250 * time.Millisecond // of bars on a terminal
	lineEvery  = 10 * time.Second       // of lines elsewhere
	barWidth   = 24
	rateWindow = 10 * time.Second // over which a rate is averaged
)

// follow shows a run's progress until it ends. If the command is interrupted, the run goes on and the error says how to find it.
func (a *app) follow(ctx context.Context, r api.Run) (api.Run, error) {
	v := a.newView()
	defer v.end()
	every := lineEvery
	if v.tty {
		every = frameEvery
	}
	for !api.Final(r.State) {
		var next api.Run
		q := "/v1/runs/" + url.PathEscape(r.ID) + "?wait_ms=" + strconv.FormatInt(every.Milliseconds(), 10)
		if err := a.call(ctx, "GET", q, nil, &next); err != nil {
			if ctx.Err() != nil {
				return r, holdfast.Errorf(holdfast.Cancelled, "", "interrupted; run %s goes on in the daemon", r.ID).
					Advise("see it with 'holdfast run show %s', end it with 'holdfast run cancel %s'", r.ID, r.ID)
			}
			return r, err
		}
		r = next
		if !a.json {
			v.show(r)
		}
	}
	return r, nil
}

// runError turns a run's end into the command's.
func runError(r api.Run) error {
	var first *api.Failure
	for i := range r.Tasks {
		if r.Tasks[i].Error != nil && first == nil {
			first = r.Tasks[i].Error
		}
	}
	if r.Error != nil {
		first = r.Error
	}
	if first == nil {
		first = &api.Failure{Code: holdfast.Internal.Code(), Message: "the run ended as " + r.State}
	}
	switch r.State {
	case api.StateDone:
		return nil
	case api.StatePartial:
		return &cli.ExitError{Code: cli.Partial, Err: &holdfast.Error{Kind: holdfast.KindOfCode(first.Code), Hint: first.Hint, Err: fmt.Errorf("some virtual machines failed: %s", first.Message)}}
	case api.StateAborted:
		return &cli.ExitError{Code: cli.Partial, Err: holdfast.Errorf(holdfast.Cancelled, "", "nothing was backed up: %s", first.Message)}
	case api.StateCancelled:
		return &cli.ExitError{Code: cli.Failed, Err: holdfast.Errorf(holdfast.Cancelled, "", "run %s was cancelled", r.ID)}
	}
	return first.Err()
}

// A view draws progress on standard error.
type view struct {
	w     io.Writer
	tty   bool
	color bool
	lines int // drawn, to be drawn over
	last  time.Time
	disks map[string]*track
}

// A track is what a view remembers of one disk, for its rate.
type track struct {
	at   []time.Time
	done []int64
}

func (a *app) newView() *view {
	_, plain := os.LookupEnv("NO_COLOR")
	tty := terminal(a.errw)
	return &view{w: a.errw, tty: tty, color: tty && !plain, last: clock.System.Now(), disks: map[string]*track{}}
}

// rate returns bytes per second over the last seconds.
func (t *track) rate(now time.Time, done int64) float64 {
	t.at, t.done = append(t.at, now), append(t.done, done)
	for len(t.at) > 2 && now.Sub(t.at[0]) > rateWindow {
		t.at, t.done = t.at[1:], t.done[1:]
	}
	if d := now.Sub(t.at[0]).Seconds(); d > 0 {
		return float64(done-t.done[0]) / d
	}
	return 0
}

// show draws the state of a run: on a terminal over what was there, else some lines from time to time.
func (v *view) show(r api.Run) {
	now := clock.System.Now()
	if !v.tty && now.Sub(v.last) < lineEvery {
		return
	}
	v.last = now
	var out strings.Builder
	lines := 0
	if v.lines > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", v.lines)
	}
	width := 1 << 20
	if f, ok := v.w.(*os.File); ok && v.tty {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			width = w
		}
	}
	for _, text := range v.render(now, r) {
		if n := []rune(text); len(n) >= width {
			text = string(n[:width-1])
		}
		if v.tty {
			text += "\x1b[K"
		}
		fmt.Fprintln(&out, text)
		lines++
	}
	if v.tty {
		v.lines = lines
	}
	_, _ = io.WriteString(v.w, out.String()) // progress that cannot be shown is not worth an error
}

// render makes the lines: one for a task, one for each of its disks.
func (v *view) render(now time.Time, r api.Run) []string {
	var lines []string
	for _, t := range r.Tasks {
		head := fmt.Sprintf("%s on %s: %s", cli.Clean(t.VM), cli.Clean(t.Host), t.State)
		if t.Host == "" {
			head = fmt.Sprintf("%s of %s: %s", r.Kind, cli.Clean(t.VM), t.State)
		}
		if t.Phase != "" && !api.Final(t.State) {
			head += ", " + t.Phase
		}
		lines = append(lines, head)
		if api.Final(t.State) {
			continue
		}
		for i, d := range t.Disks {
			key := t.ID + "/" + strconv.Itoa(i)
			if v.disks[key] == nil {
				v.disks[key] = &track{}
			}
			rate := v.disks[key].rate(now, d.Done)
			if t.Host == "" {
				lines = append(lines, "  "+v.steps(d, rate))
				continue
			}
			lines = append(lines, "  "+v.disk(d, rate))
		}
	}
	return lines
}

func (v *view) disk(d api.Progress, rate float64) string {
	name := cli.Clean(d.Name)
	if d.Total <= 0 {
		return fmt.Sprintf("%s  %s  %s/s", name, cli.Size(d.Done), cli.Size(int64(rate)))
	}
	part := min(float64(d.Done)/float64(d.Total), 1)
	eta := ""
	if left := d.Total - d.Done; left > 0 && rate > 1 {
		eta = "  ETA " + span(time.Duration(float64(left)/rate*float64(time.Second)))
	}
	return fmt.Sprintf("%s  %s %3.0f%%  %s of %s  %s/s  sent %s%s", name, v.bar(part), part*100, cli.Size(d.Done), cli.Size(d.Total), cli.Size(int64(rate)), cli.Size(d.Sent), eta)
}

// steps shows the progress of what the appliance works on itself, in its own unit.
func (v *view) steps(d api.Progress, rate float64) string {
	amount := func(n int64) string {
		if d.Unit == "" {
			return cli.Size(n)
		}
		return strconv.FormatInt(n, 10)
	}
	unit, speed := "", cli.Size(int64(rate))+"/s"
	if d.Unit != "" {
		unit, speed = " "+cli.Clean(d.Unit), fmt.Sprintf("%.1f/s", rate)
	}
	if d.Total <= 0 {
		return fmt.Sprintf("%s%s  %s", amount(d.Done), unit, speed)
	}
	part := min(float64(d.Done)/float64(d.Total), 1)
	eta := ""
	if left := d.Total - d.Done; left > 0 && rate > 0 {
		eta = "  ETA " + span(time.Duration(float64(left)/rate*float64(time.Second)))
	}
	return fmt.Sprintf("%s %3.0f%%  %s of %s%s  %s%s", v.bar(part), part*100, amount(d.Done), amount(d.Total), unit, speed, eta)
}

func (v *view) bar(part float64) string {
	if !v.tty {
		return ""
	}
	full := int(part * barWidth)
	bar := strings.Repeat("#", full)
	if v.color {
		bar = "\x1b[32m" + bar + "\x1b[0m"
	}
	return "[" + bar + strings.Repeat(".", barWidth-full) + "]"
}

func (v *view) end() { v.lines = 0 }
