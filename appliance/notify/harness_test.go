package notify

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeClock stands still until it is moved.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[chan time.Time]time.Time
	asked  chan struct{} // gets a token when somebody waits
}

func newClock() *fakeClock {
	return &fakeClock{now: time.Date(2026, 6, 17, 12, 0, 0, 0, time.UTC), timers: map[chan time.Time]time.Time{}, asked: make(chan struct{}, 1000)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) After(d time.Duration) (<-chan time.Time, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	if d <= 0 {
		ch <- c.now
		return ch, func() {}
	}
	c.timers[ch] = c.now.Add(d)
	select {
	case c.asked <- struct{}{}:
	default:
	}
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, ch)
	}
}

func (c *fakeClock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for ch, at := range c.timers {
		if !at.After(c.now) {
			ch <- c.now
			delete(c.timers, ch)
		}
	}
}

// weakStore refuses changes while down.
type weakStore struct {
	*Memory
	down bool
}

func (s *weakStore) Apply(cs []Change) error {
	if s.down {
		return holdfast.Errorf(holdfast.NoSpace, "apply", "the disk is full")
	}
	return s.Memory.Apply(cs)
}

// world is a Notifier with all that is around it.
type world struct {
	t       *testing.T
	clock   *fakeClock
	store   *weakStore
	targets []Target
	o       Options
	n       *Notifier
	events  []holdfast.Event // told to the listener
}

func newWorld(t *testing.T, targets ...Target) *world {
	t.Helper()
	w := &world{t: t, clock: newClock(), store: &weakStore{Memory: NewMemory()}, targets: targets}
	w.o = Options{Store: w.store, Clock: w.clock, Site: "lab", Listener: func(e holdfast.Event) { w.events = append(w.events, e) }}
	w.restart()
	return w
}

// restart makes a new Notifier over the same store, as a new process would.
func (w *world) restart() {
	w.t.Helper()
	n, err := New(w.o, w.targets)
	if err != nil {
		w.t.Fatal(err)
	}
	w.n = n
}

func (w *world) accept(es ...holdfast.Event) {
	w.t.Helper()
	for _, e := range es {
		if err := w.n.Accept(0, e); err != nil {
			w.t.Fatal(err)
		}
	}
}

// drain sends what is due now.
func (w *world) drain() time.Time { return w.n.Drain(context.Background()) }

// settle sends until nothing waits, moving the clock to whatever is due next.
func (w *world) settle() {
	w.t.Helper()
	for range 10000 {
		next := w.drain()
		if next.IsZero() {
			return
		}
		w.clock.move(max(next.Sub(w.clock.Now()), time.Millisecond))
	}
	w.t.Fatal("it never settles")
}

// hook is a webhook's receiver that checks the signature of all that comes.
type hook struct {
	*httptest.Server
	t   *testing.T
	key Secret

	mu      sync.Mutex
	got     []Message
	raw     []string
	headers []http.Header
	paths   []string
	status  int // to answer; 0: 204
	answer  http.Header
	arrived chan Message
}

func newHook(t *testing.T, key Secret) *hook {
	h := &hook{t: t, key: key, answer: http.Header{}, arrived: make(chan Message, 1000)}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		h.t.Error(err)
	}
	if h.key != "" && r.Header.Get(HeaderSignature) != Sign(h.key, r.Header.Get(HeaderTimestamp), body) {
		h.t.Errorf("the signature %q is wrong", r.Header.Get(HeaderSignature))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.status != 0 {
		for k := range h.answer {
			w.Header().Set(k, h.answer.Get(k))
		}
		w.WriteHeader(h.status)
		_, _ = io.WriteString(w, "no\nthanks")
		return
	}
	var m Message
	_ = json.Unmarshal(body, &m) // templates make other things
	h.got = append(h.got, m)
	h.raw = append(h.raw, string(body))
	h.headers = append(h.headers, r.Header)
	h.paths = append(h.paths, r.URL.Path)
	w.WriteHeader(http.StatusNoContent)
	h.arrived <- m
}

func (h *hook) taken() []Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Message{}, h.got...)
}

func (h *hook) say(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

func (h *hook) target(name string) Target {
	return Target{Name: name, Webhook: &Webhook{URL: h.URL, Key: h.key}, Flood: &Flood{Max: 10000, Minutes: 1}}
}

func event(s holdfast.Severity, text string) holdfast.Event {
	return holdfast.Event{Type: "something", Severity: s, Text: text, Fields: map[string]string{"vm": "db"}}
}

func raised(i int) holdfast.Event {
	return Raise(event(holdfast.Alarm, "trouble "+strconv.Itoa(i)), "trouble/"+strconv.Itoa(i))
}

func cleared(i int) holdfast.Event {
	return Clear(event(holdfast.Info, "well again "+strconv.Itoa(i)), "trouble/"+strconv.Itoa(i))
}

func wantKind(t *testing.T, err error, k holdfast.Kind) {
	t.Helper()
	if !errors.Is(err, k) {
		t.Errorf("got %v, want %v", err, k)
	}
}
