package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// print shows a value: JSON for programs, or what text writes for people.
func (a *app) print(v any, text func(p *printer)) error {
	if a.json {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return holdfast.Errorf(holdfast.Internal, "print", "%w", err)
		}
		return nil
	}
	p := &printer{tw: tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)}
	text(p)
	if p.err == nil {
		p.err = p.tw.Flush()
	}
	if p.err != nil {
		return holdfast.Errorf(holdfast.Internal, "print", "%w", p.err)
	}
	return nil
}

// A printer writes aligned columns and remembers the first error.
type printer struct {
	tw  *tabwriter.Writer
	err error
}

// row writes one line of columns.
func (p *printer) row(cols ...any) {
	text := make([]string, len(cols))
	for i, c := range cols {
		text[i] = cli.Clean(fmt.Sprint(c))
	}
	p.line("%s", strings.TrimRight(strings.Join(text, "\t"), "\t"))
}

// line writes one line as it is.
func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.tw, format+"\n", args...)
	}
}

// when shows a time in the local zone and how long ago it was.
func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	ago := clock.System.Now().Sub(t).Round(time.Second)
	var rel string
	switch {
	case ago < 0:
		rel = "in " + span(-ago)
	default:
		rel = span(ago) + " ago"
	}
	return t.Local().Format("2006-01-02 15:04:05") + " (" + rel + ")"
}

// span shows a duration in its two largest units.
func span(d time.Duration) string {
	d = d.Round(time.Second)
	h, m, s := int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60
	switch {
	case h >= 48:
		return fmt.Sprintf("%dd%dh", h/24, h%24)
	case h > 0:
		return fmt.Sprintf("%dh%02dm", h, m)
	case m > 0:
		return fmt.Sprintf("%dm%02ds", m, s)
	}
	return fmt.Sprintf("%ds", s)
}

// confirm asks before something is lost. Without a terminal to ask on, --yes is needed.
func (a *app) confirm(yes bool, loss string) error {
	if yes {
		return nil
	}
	if !terminal(a.in) {
		return &cli.ExitError{Code: cli.Usage, Err: holdfast.Errorf(holdfast.Invalid, "", "%s", loss).Advise("if that is what you want, repeat the command with --yes")}
	}
	fmt.Fprintf(a.errw, "%s\nType yes to go on: ", loss)
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "yes" {
		return &cli.ExitError{Code: cli.Failed, Err: holdfast.Errorf(holdfast.Cancelled, "", "nothing was changed")}
	}
	return nil
}
