// Package notifytest is a mail server and a webhook for tests that look at what notification targets are told: which alarms and clearings came,
// and how often.
//
// It owns its listeners and connections, promises nothing about crashes, and must not import anything of the house but notify and the
// clock.
package notifytest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/notify"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// Told is what a sink took: alarms and their clearings, as "key raised" and "key cleared", each with how often it came.
type Told struct {
	mu    sync.Mutex // leaf
	count map[string]int
	bad   []string
}

func (l *Told) add(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[what]++
}

func (l *Told) wrong(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bad = append(l.bad, fmt.Sprintf(format, args...))
}

// Has tells whether something came.
func (l *Told) Has(what string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count[what] > 0
}

// Once tells whether something came exactly once.
func (l *Told) Once(what string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count[what] == 1
}

// Check fails the test unless each of want came exactly once, nothing else did, and all was well formed.
func (l *Told) Check(t *testing.T, name string, want []string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, bad := range l.bad {
		t.Errorf("%s: %s", name, bad)
	}
	for _, w := range want {
		if n := l.count[w]; n != 1 {
			t.Errorf("%s: told %d times: %s", name, n, w)
		}
	}
	if len(l.count) != len(want) {
		t.Errorf("%s: told of %v, which should be %v", name, slices.Sorted(maps.Keys(l.count)), want)
	}
}

// Hook is a webhook that checks signatures, if there is a key.
func Hook(t *testing.T, key string) (l *Told, url string) {
	t.Helper()
	l = &Told{count: map[string]int{}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || key != "" && r.Header.Get(notify.HeaderSignature) != notify.Sign(notify.Secret(key), r.Header.Get(notify.HeaderTimestamp), body) {
			l.wrong("a request without a good signature: %v", err)
		}
		var m notify.Message
		if err := json.Unmarshal(body, &m); err != nil {
			l.wrong("%v", err)
		}
		if m.Alarm != "" {
			l.add(m.Alarm + " " + string(m.State))
		}
	}))
	t.Cleanup(srv.Close)
	return l, srv.URL
}

// Mailbox is an SMTP server that takes everything.
func Mailbox(t *testing.T) (l *Told, port int) {
	t.Helper()
	l = &Told{count: map[string]int{}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { l.smtp(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return l, ln.Addr().(*net.TCPAddr).Port
}

// smtp serves one connection.
func (l *Told) smtp(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(clock.System.Now().Add(time.Minute)) // fails only on a closed connection
	tp := textproto.NewConn(c)
	say := func(s string) { _ = tp.PrintfLine("%s", s) }
	say("220 sink ESMTP")
	for {
		line, err := tp.ReadLine()
		if err != nil {
			return
		}
		switch verb, _, _ := strings.Cut(strings.ToUpper(line), " "); verb {
		case "DATA":
			say("354 go on")
			m, err := mail.ReadMessage(bufio.NewReader(tp.DotReader()))
			if err != nil {
				l.wrong("%v", err)
				return
			}
			_, _ = io.Copy(io.Discard, m.Body)
			if a := m.Header.Get("X-Holdfast-Alarm"); a != "" {
				l.add(a)
			}
			say("250 accepted")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}
