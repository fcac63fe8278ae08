package notify

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// TestEachAlarmReachesMailAndWebhookExactlyOnce is the promise as a whole. Goal: whatever fails on the way, a mail server and a webhook receive each
// alarm once and its clearing once, in order. Method: 40 random histories of alarms raised and cleared, often repeated, with failing targets, a failing
// store, restarts that read the log again from the cursor or from before it, and a clock that moves; a model counts what must arrive.
func TestEachAlarmReachesMailAndWebhookExactlyOnce(t *testing.T) {
	for seed := range uint64(40) {
		c := newCampaign(t, seed)
		for range 80 {
			c.step()
		}
		c.heal()
		c.check()
	}
}

type campaign struct {
	*world
	r     *rand.Rand
	seed  uint64
	sink  *smtpSink
	hook  *hook
	log   []holdfast.Event // numbered from 1
	up    map[string]bool  // the model's open alarms
	want  []string
	again bool // a record of sending was lost, then a message may come again, with the same id
}

func newCampaign(t *testing.T, seed uint64) *campaign {
	c := &campaign{r: rand.New(rand.NewPCG(3, seed)), seed: seed, sink: newSMTPSink(t, nil), hook: newHook(t, "key"), up: map[string]bool{}}
	m := mailTarget(c.sink, nil)
	m.Flood = &Flood{Max: 10000, Minutes: 1}
	c.world = newWorld(t, m, c.hook.target("hook"))
	return c
}

func (c *campaign) step() {
	switch c.r.IntN(12) {
	case 0:
		c.store.down = false
		c.restart()
		from := max(0, int(c.n.Cursor())-c.r.IntN(4))
		c.feed(from)
	case 1:
		c.hook.say([]int{0, 503, 429}[c.r.IntN(3)])
	case 2:
		c.sink.set(func() {
			clear(c.sink.deny)
			c.sink.denyAll, c.sink.cut = []string{"", "451 4.3.0 not now"}[c.r.IntN(2)], c.r.IntN(2) == 0
			if c.r.IntN(2) == 0 {
				c.sink.deny["admin@example.org"] = "450 4.2.1 busy"
			}
		})
	case 3:
		c.store.down = !c.store.down
		c.again = c.again || c.store.down
	case 4, 5:
		c.drain()
	case 6:
		c.clock.move(time.Duration(c.r.IntN(3600)) * time.Second)
	default:
		i := c.r.IntN(4)
		e := raised(i)
		if c.r.IntN(2) == 0 {
			e = cleared(i)
		}
		key, s := alarmOf(e)
		if c.up[key] != (s == Raised) {
			c.up[key] = s == Raised
			c.want = append(c.want, key+" "+string(s))
		}
		c.log = append(c.log, e)
		c.feed(len(c.log) - 1)
	}
}

// feed hands the log in from an index on, until the store refuses.
func (c *campaign) feed(from int) {
	from = min(from, int(c.n.Cursor()))
	for i, e := range c.log[from:] {
		if c.n.Accept(uint64(from+i+1), e) != nil {
			return
		}
	}
}

func (c *campaign) heal() {
	c.store.down = false
	c.hook.say(0)
	c.sink.set(func() {
		clear(c.sink.deny)
		c.sink.denyAll = ""
	})
	c.restart()
	c.feed(int(c.n.Cursor()))
	c.settle()
}

func (c *campaign) check() {
	var mails, hooks []string
	ids := map[string]bool{}
	take := func(list []string, id, alarm string) []string {
		if ids[id] && c.again {
			return list
		}
		ids[id] = true
		return append(list, alarm)
	}
	for _, m := range c.sink.taken() {
		if a := m.header.Get("X-Holdfast-Alarm"); !strings.HasPrefix(a, "notify/") {
			mails = take(mails, "mail "+m.header.Get("Message-ID"), a)
		}
	}
	for _, m := range c.hook.taken() {
		hooks = take(hooks, "hook "+m.ID, fmt.Sprintf("%s %s", m.Alarm, m.State))
	}
	if !slices.Equal(mails, c.want) || !slices.Equal(hooks, c.want) {
		c.t.Fatalf("seed %d:\nwant  %v\nmails %v\nhooks %v\n%+v", c.seed, c.want, mails, hooks, c.n.Status())
	}
}
