package notify

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
)

func compareNames(a, b string) int { return cmp.Compare(a, b) }

// admit lets a message to a target: into its digest, its queue, or what flood control holds back. grave is the severity that decides; a
// clearing goes the way of its alarm.
func (tx *tx) admit(t *target, m Message, grave holdfast.Severity) {
	p := tx.part(t)
	if t.Digest != nil && (t.Digest.All || grave < holdfast.Alarm) {
		if p.state.Digest.Count == 0 {
			p.state.Due = nextAt(t.Digest.At, tx.now, tx.n.o.Zone)
		}
		p.state.Digest = p.state.Digest.with(&m, digestLine)
		return
	}
	tx.window(p)
	if most, _ := t.flood(); p.state.Sent >= most {
		p.state.Held = p.state.Held.with(&m, floodLines)
		return
	}
	p.state.Sent++
	if len(p.queue) >= tx.n.maxQueue && !tx.makeRoom(p, m.Severity) {
		p.state.Held = p.state.Held.with(&m, floodLines)
		return
	}
	tx.push(p, m)
}

// makeRoom moves the oldest of the mildest messages that wait to what is held back, if it is milder than s. The head may be on its way.
func (tx *tx) makeRoom(p *part, s holdfast.Severity) bool {
	mildest := -1
	for i := 1; i < len(p.queue); i++ {
		if mildest < 0 || p.queue[i].Message.Severity < p.queue[mildest].Message.Severity {
			mildest = i
		}
	}
	if mildest < 0 || p.queue[mildest].Message.Severity >= s {
		return false
	}
	d := p.queue[mildest]
	p.state.Held = p.state.Held.with(&d.Message, floodLines)
	p.queue = slices.Delete(p.queue, mildest, mildest+1)
	tx.drop = append(tx.drop, d)
	return true
}

// window begins a new time of flood control when the last one is over, with a summary of what was held back. A clock that went back
// ends it too.
func (tx *tx) window(p *part) {
	_, per := p.t.flood()
	if !tx.now.Before(p.state.Start) && tx.now.Before(p.state.Start.Add(per)) {
		return
	}
	if p.state.Held.Count > 0 && len(p.queue) > tx.n.maxQueue {
		return // the summary must wait for room, and with it the rest
	}
	p.state.Start, p.state.Sent = tx.now, 0
	if p.state.Held.Count > 0 {
		tx.push(p, p.state.Held.message(tx.n, EventSummary, tx.now.UTC(), "%d more held back"))
		p.state.Held, p.state.Sent = pile{}, 1
	}
}

func (tx *tx) push(p *part, m Message) {
	tx.seq++
	d := &delivery{Seq: tx.seq, Target: p.t.Name, Message: m, Queued: tx.now}
	p.queue = append(p.queue, d)
	tx.add = append(tx.add, d)
}

// tick queues the summaries and digests that are due and returns when the next one will be; the zero time if none waits.
func (tx *tx) tick() (next time.Time) {
	for _, t := range tx.n.targets {
		_, per := t.flood()
		if end := t.state.Start.Add(per); t.state.Held.Count > 0 {
			switch {
			case tx.now.Before(end) && !tx.now.Before(t.state.Start):
				next = earlier(next, end)
			case len(t.queue) <= tx.n.maxQueue: // else the queue's getting shorter brings the next look
				tx.window(tx.part(t))
			}
		}
		if t.state.Digest.Count == 0 {
			continue
		}
		if tx.now.Before(t.state.Due) && t.Digest != nil {
			// The clock may have gone back, or the digest's time have been changed.
			next = earlier(next, earlier(t.state.Due, nextAt(t.Digest.At, tx.now, tx.n.o.Zone)))
			if due := nextAt(t.Digest.At, tx.now, tx.n.o.Zone); due.Before(t.state.Due) {
				tx.part(t).state.Due = due
			}
			continue
		}
		p := tx.part(t)
		tx.push(p, p.state.Digest.message(tx.n, EventDigest, tx.now.UTC(), "Digest of %d"))
		p.state.Digest, p.state.Due = pile{}, time.Time{}
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// nextAt returns the next moment after now at which the zone's clocks show at.
func nextAt(at string, now time.Time, zone *time.Location) time.Time {
	m, _ := minutes(at)
	l := now.In(zone)
	for day := 0; ; day++ {
		if t := time.Date(l.Year(), l.Month(), l.Day()+day, m/60, m%60, 0, 0, zone); t.After(now) {
			return t
		}
	}
}
