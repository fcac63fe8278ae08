package notify

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// A Message is what a target is told. Webhooks send it as this JSON, their templates see these names; both only ever gain fields.
type Message struct {
	Version  int                `json:"version"` // 1
	ID       string             `json:"id"`      // the same however often the message is tried
	Site     string             `json:"site,omitempty"`
	Time     time.Time          `json:"time"`
	Severity holdfast.Severity  `json:"severity"`
	Type     holdfast.EventType `json:"type"`
	State    State              `json:"state,omitempty"` // raised or cleared, of an alarm
	Alarm    string             `json:"alarm,omitempty"` // its key
	Title    string             `json:"title"`           // one line
	Text     string             `json:"text"`            // one or more lines
	Fields   map[string]string  `json:"fields,omitempty"`
}

// Bounds of a message, whatever the event was.
const (
	maxTitle  = 160 // runes
	maxBody   = 32 << 10
	maxFields = 50
	maxField  = 2000
)

// newMessage makes a message of an event. The clearing of an alarm says what was raised and when.
func (n *Notifier) newMessage(e *holdfast.Event, key string, s State, was *Alarm) Message {
	m := Message{Version: 1, ID: holdfast.NewID().String(), Site: n.o.Site, Time: e.Time, Severity: e.Severity, Type: e.Type, State: s, Alarm: key,
		Title: e.Severity.String() + ": " + e.Text, Text: clipText(e.Text, maxBody)}
	if s == Cleared {
		m.Title = "cleared: " + e.Text
		m.Text = fmt.Sprintf("%s\nCleared: %s, since %s", m.Text, clipText(was.Text, maxBody), n.stamp(was.Raised))
	}
	m.Title = oneLine(strings.ToUpper(m.Title[:1]) + m.Title[1:])
	for _, name := range slices.Sorted(maps.Keys(e.Fields)) {
		if name == FieldAlarm || name == FieldState || len(m.Fields) >= maxFields {
			continue
		}
		if m.Fields == nil {
			m.Fields = map[string]string{}
		}
		m.Fields[clipText(name, 100)] = clipText(e.Fields[name], maxField)
	}
	return m
}

func (n *Notifier) stamp(t time.Time) string { return t.In(n.o.Zone).Format("2006-01-02 15:04:05 MST") }

// clipText makes s valid UTF-8 of at most limit bytes.
func clipText(s string, limit int) string {
	if s = strings.ToValidUTF8(s, "\uFFFD"); len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// oneLine makes s fit for a subject or header: no control characters, at most maxTitle runes.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if r := []rune(s); len(r) > maxTitle {
		return string(r[:maxTitle-1]) + "…"
	}
	return s
}

// details returns a message as lines for people, without its title.
func (m *Message) details() string {
	var b strings.Builder
	b.WriteString(m.Text)
	b.WriteString("\n\n")
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-10s %s\n", name+":", strings.Join(strings.Fields(value), " "))
		}
	}
	line("time", m.Time.Format(time.RFC3339))
	line("severity", m.Severity.String())
	line("type", string(m.Type))
	line("alarm", strings.TrimSpace(m.Alarm+" "+string(m.State)))
	for _, name := range slices.Sorted(maps.Keys(m.Fields)) {
		line(name, m.Fields[name])
	}
	line("site", m.Site)
	line("message", m.ID)
	return b.String()
}

// A pile is what many messages leave when one stands for them: counts of all, and lines of the gravest.
type pile struct {
	Count int                       `json:"count"`
	By    map[holdfast.Severity]int `json:"by,omitempty"`
	Lines []pileLine                `json:"lines,omitempty"`
}

type pileLine struct {
	Time     time.Time         `json:"time"`
	Severity holdfast.Severity `json:"severity"`
	Text     string            `json:"text"`
}

// with returns the pile with m on it, keeping at most limit lines. The receiver stays as it is.
func (p pile) with(m *Message, limit int) pile {
	by := maps.Clone(p.By)
	if by == nil {
		by = map[holdfast.Severity]int{}
	}
	by[m.Severity]++
	lines := append(slices.Clone(p.Lines), pileLine{m.Time, m.Severity, m.Title})
	if len(lines) > limit { // the mildest goes, of those the latest
		slices.SortStableFunc(lines, func(a, b pileLine) int { return int(b.Severity) - int(a.Severity) })
		lines = lines[:limit]
		slices.SortStableFunc(lines, func(a, b pileLine) int { return a.Time.Compare(b.Time) })
	}
	return pile{p.Count + 1, by, lines}
}

// message returns what stands for the pile.
func (p pile) message(n *Notifier, t holdfast.EventType, now time.Time, title string) Message {
	m := Message{Version: 1, ID: holdfast.NewID().String(), Site: n.o.Site, Time: now, Type: t}
	var counts []string
	for s := holdfast.Alarm; ; s-- {
		if c := p.By[s]; c > 0 {
			m.Severity = max(m.Severity, s)
			counts = append(counts, fmt.Sprintf("%d %s", c, s))
		}
		if s == holdfast.Info {
			break
		}
	}
	m.Title = oneLine(fmt.Sprintf(title, p.Count) + ": " + strings.Join(counts, ", "))
	var b strings.Builder
	for _, l := range p.Lines {
		fmt.Fprintf(&b, "%s  %s\n", n.stamp(l.Time), l.Text)
	}
	if more := p.Count - len(p.Lines); more > 0 {
		fmt.Fprintf(&b, "and %d more\n", more)
	}
	m.Text = clipText(b.String(), maxBody)
	return m
}
