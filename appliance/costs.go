package appliance

import (
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/object"
)

// maxCosts bounds what setCosts keeps: sets whose session ended in another way never ask for theirs.
const maxCosts = 256

// setCosts keeps what pools say that a set cost in requests, from the commit until the set's task asks for it.
type setCosts struct {
	mu   sync.Mutex
	text map[string]string // by set id
}

// hear returns a listener that notes costs and passes every event on.
func (c *setCosts) hear(next holdfast.Listener) holdfast.Listener {
	return func(e holdfast.Event) {
		if e.Type == object.EventRequests {
			c.mu.Lock()
			if c.text == nil || len(c.text) >= maxCosts {
				c.text = map[string]string{}
			}
			c.text[e.Fields["set"]] = e.Text
			c.mu.Unlock()
		}
		next(e)
	}
}

// take returns what is known of a set, once; "" if nothing is.
func (c *setCosts) take(set holdfast.SetID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := c.text[set.String()]
	delete(c.text, set.String())
	return text
}
