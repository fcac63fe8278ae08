package notify

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

func mailTarget(s *smtpSink, set func(*Mail)) Target {
	_, ca := testCertificate(nil)
	m := &Mail{Host: "127.0.0.1", Port: s.port(), CA: ca, From: "Backup <holdfast@example.org>", To: []string{"admin@example.org"}, Hello: "appliance"}
	if set != nil {
		set(m)
	}
	return Target{Name: "mail", Mail: m}
}

// TestMailArrives sends an alarm and its clearing over each kind of connection, with and without authentication, and reads them as a mail
// program would.
func TestMailArrives(t *testing.T) {
	for _, c := range []struct {
		name   string
		sink   func(*smtpSink)
		mail   func(*Mail)
		secure bool
	}{
		{"starttls", nil, nil, true},
		{"starttls and password", func(s *smtpSink) { s.user, s.password = "u", "p" }, func(m *Mail) { m.User, m.Password = "u", "p" }, true},
		{"starttls and login", func(s *smtpSink) { s.user, s.password = "u", "p" }, func(m *Mail) { m.User, m.Password, m.Auth = "u", "p", "login" }, true},
		{"tls", func(s *smtpSink) { s.wrap = true }, func(m *Mail) { m.Security = TLS }, true},
		{"tls and password", func(s *smtpSink) { s.wrap, s.user, s.password = true, "u", "p" }, func(m *Mail) { m.Security, m.User, m.Password = TLS, "u", "p" }, true},
		{"plain", func(s *smtpSink) { s.noTLS = true }, func(m *Mail) { m.Security = PlainTCP }, false},
		{"plain where TLS is offered", nil, func(m *Mail) { m.Security = PlainTCP }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSMTPSink(t, c.sink)
			w := newWorld(t, mailTarget(s, c.mail))
			e := raised(1)
			e.Text = "Platte voll – größer\r\nBcc: evil@example.org"
			e.Fields["müll"] = "a\nb"
			w.accept(e)
			w.restart()
			w.settle()
			w.accept(cleared(1))
			w.settle()
			got := s.taken()
			if len(got) != 2 || len(w.events) > 0 {
				t.Fatalf("%d mails, %+v, %+v", len(got), w.n.Status(), w.events)
			}
			m := got[0]
			if m.from != "holdfast@example.org" || m.to != "admin@example.org" || m.secure != c.secure || m.subject != "[Holdfast lab] Alarm: Platte voll – größer  Bcc: evil@example.org" {
				t.Errorf("%+v", m)
			}
			if m.header.Get("Bcc") != "" || m.header.Get("Auto-Submitted") != "auto-generated" || m.header.Get("Date") == "" || !strings.HasSuffix(m.header.Get("Message-ID"), "@example.org>") {
				t.Errorf("%v", m.header)
			}
			if !strings.Contains(m.body, "vm:        db\n") || !strings.Contains(m.body, "Platte voll – größer") {
				t.Error(m.body)
			}
			if got[1].subject != "[Holdfast lab] Cleared: well again 1" || got[1].header.Get("References") != m.header.Get("References") {
				t.Errorf("%+v", got[1])
			}
		})
	}
}

// TestMailIsNotSentInTheClear: without STARTTLS, or with a certificate that nobody vouches for, nothing leaves.
func TestMailIsNotSentInTheClear(t *testing.T) {
	for name, c := range map[string]struct {
		sink func(*smtpSink)
		mail func(*Mail)
	}{
		"no STARTTLS":                {func(s *smtpSink) { s.noTLS = true }, nil},
		"unknown certificate":        {nil, func(m *Mail) { m.CA = "" }},
		"unknown certificate in TLS": {func(s *smtpSink) { s.wrap = true }, func(m *Mail) { m.CA, m.Security = "", TLS }},
	} {
		s := newSMTPSink(t, c.sink)
		w := newWorld(t)
		wantKind(t, w.n.Test(context.Background(), mailTarget(s, c.mail)), holdfast.Offline)
		if got := s.taken(); len(got) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestMailServesEachRecipientOnce refuses one of three addresses, first for now and then for good: the others get one mail each.
func TestMailServesEachRecipientOnce(t *testing.T) {
	for answer, want := range map[string]int{"450 4.2.1 try later": 3, "550 5.1.1 nobody here": 2} {
		s := newSMTPSink(t, func(s *smtpSink) { s.deny["b@example.org"] = answer })
		w := newWorld(t, mailTarget(s, func(m *Mail) { m.To = []string{"a@example.org", "b@example.org", "c@example.org"} }))
		w.accept(event(holdfast.Alarm, "x"))
		for range 4 {
			next := w.drain()
			w.clock.move(next.Sub(w.clock.Now()))
			w.restart()
		}
		if want == 3 {
			s.set(func() { clear(s.deny) })
		}
		w.settle()
		by := map[string]int{}
		ids := map[string]bool{}
		for _, m := range s.taken() {
			by[m.to]++
			ids[m.header.Get("Message-ID")] = true
		}
		if len(s.taken()) != want || by["a@example.org"] != 1 || by["c@example.org"] != 1 || len(ids) != 1 {
			t.Errorf("%s: %v, %v", answer, by, ids)
		}
		if want == 2 && (w.n.Status()[0].GivenUp != 1 || !strings.Contains(w.events[len(w.events)-1].Text, "nobody here")) {
			t.Errorf("%+v", w.events)
		}
	}
}

// TestMailThatWasAcceptedIsNotSentAgain though the server hangs up right after; if it hangs up before it said so, the mail comes again with the same
// Message-ID.
func TestMailThatWasAcceptedIsNotSentAgain(t *testing.T) {
	s := newSMTPSink(t, func(s *smtpSink) { s.cut = true })
	w := newWorld(t, mailTarget(s, nil))
	w.accept(event(holdfast.Alarm, "x"))
	w.settle()
	if got := s.taken(); len(got) != 1 || w.n.Status()[0].Error != "" {
		t.Errorf("%d, %+v", len(got), w.n.Status())
	}
	s.set(func() { s.lose = true })
	w.accept(event(holdfast.Alarm, "y"))
	w.drain()
	s.set(func() { s.lose = false })
	w.settle()
	if got := s.taken(); len(got) != 3 || got[1].header.Get("Message-ID") != got[2].header.Get("Message-ID") {
		t.Errorf("%d mails", len(got))
	}
}

// TestMailWithAWrongPassword says so, does not print it, and works once the password is mended.
func TestMailWithAWrongPassword(t *testing.T) {
	s := newSMTPSink(t, func(s *smtpSink) { s.user, s.password = "u", "right" })
	tg := mailTarget(s, func(m *Mail) { m.User, m.Password = "u", "hunter2" })
	w := newWorld(t, tg)
	err := w.n.Test(context.Background(), tg)
	wantKind(t, err, holdfast.Permission)
	if strings.Contains(fmt.Sprint(err), "hunter2") {
		t.Error(err)
	}
	w.accept(event(holdfast.Alarm, "x"))
	w.drain()
	tg = mailTarget(s, func(m *Mail) { m.User, m.Password = "u", "right" })
	if err := w.n.SetTargets([]Target{tg}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if len(s.taken()) != 1 {
		t.Errorf("%+v", w.n.Status())
	}
}

// TestWebhookIsSigned checks a request as its receiver does; hook itself checks the signature.
func TestWebhookIsSigned(t *testing.T) {
	h := newHook(t, "key")
	w := newWorld(t, h.target("hook"))
	w.accept(raised(1))
	w.settle()
	var m Message
	if err := json.Unmarshal([]byte(h.raw[0]), &m); err != nil {
		t.Fatal(err)
	}
	hd := h.headers[0]
	if m.Version != 1 || m.Severity != holdfast.Alarm || m.State != Raised || m.Site != "lab" || m.Fields["vm"] != "db" || m.ID == "" || hd.Get(HeaderDelivery) != m.ID ||
		hd.Get(HeaderTimestamp) != strconv.FormatInt(w.clock.Now().Unix(), 10) || hd.Get("Content-Type") != "application/json" {
		t.Errorf("%s %v", h.raw[0], hd)
	}
	// An answer of another implementation.
	if got := Sign("Jefe", "1700000000", []byte("what do ya want for nothing?")); got != signatureByOpenSSL {
		t.Error(got)
	}
}

// signatureByOpenSSL is the output of: printf '1700000000.what do ya want for nothing?' | openssl dgst -sha256 -hmac Jefe
const signatureByOpenSSL = "sha256=1cdd0650c8be1cb0974b1788d458b1e781206cfef59b85faafc582d2e182c57e"

// TestWebhookTemplate makes what a chat system wants; its token is in the address.
func TestWebhookTemplate(t *testing.T) {
	h := newHook(t, "k")
	tg := h.target("chat")
	tg.Webhook.URL += "/services/{token}"
	tg.Webhook.Token = "T0/abc"
	tg.Webhook.ContentType = "application/vnd.chat+json"
	tg.Webhook.Template = `{"text": {{json .Title}}, "vm": {{json .Fields.vm}}, "none": {{json .Fields.none}}, "s": "{{.Severity}}"}`
	w := newWorld(t, tg)
	w.accept(event(holdfast.Alarm, `a "quoted" text`))
	w.settle()
	if h.raw[0] != `{"text": "Alarm: a \"quoted\" text", "vm": "db", "none": "", "s": "alarm"}` || h.paths[0] != "/services/T0/abc" ||
		h.headers[0].Get("Content-Type") != "application/vnd.chat+json" || h.headers[0].Get("Authorization") != "" {
		t.Errorf("%s %v %v", h.raw, h.paths, h.headers)
	}
	h.Close()
	err := w.n.Test(context.Background(), tg)
	wantKind(t, err, holdfast.Offline)
	if strings.Contains(err.Error(), "abc") {
		t.Errorf("the token shows: %v", err)
	}
	tg.Webhook.Template = `{{range $i, $e := .Fields}}{{end}}{{.Nothing}}`
	wantKind(t, tg.Check(), holdfast.Invalid)
	tg.Webhook.Template = `{{`
	wantKind(t, tg.Check(), holdfast.Invalid)
	tg.Webhook.Template = `{{printf "%300000d" 1}}`
	wantKind(t, tg.Check(), holdfast.Invalid)
}

// TestWebhookDoesNotFollowRedirects: what is signed for one address does not go to another.
func TestWebhookDoesNotFollowRedirects(t *testing.T) {
	other := newHook(t, "")
	s := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer s.Close()
	w := newWorld(t)
	wantKind(t, w.n.Test(context.Background(), Target{Name: "x", Webhook: &Webhook{URL: s.URL, Token: "t"}}), holdfast.Invalid)
	wantTitles(t, other, "")
}

// TestHTTPSNeedsTheRightCertificate: a private CA is trusted where it is given.
func TestHTTPSNeedsTheRightCertificate(t *testing.T) {
	_, ca := testCertificate(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = newSMTPSink(t, nil).tls
	s.StartTLS()
	defer s.Close()
	w := newWorld(t)
	if err := w.n.Test(context.Background(), Target{Name: "x", Webhook: &Webhook{URL: s.URL, CA: ca}}); err != nil {
		t.Error(err)
	}
	wantKind(t, w.n.Test(context.Background(), Target{Name: "x", Webhook: &Webhook{URL: s.URL}}), holdfast.Offline)
}

// TestNtfyAndGotify check what their servers' documentation asks for.
func TestNtfyAndGotify(t *testing.T) {
	type request struct {
		path string
		h    http.Header
		body map[string]any
	}
	var got []request
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		q := request{path: r.Method + " " + r.URL.Path, h: r.Header}
		if err := json.Unmarshal(b, &q.body); err != nil {
			t.Error(err)
		}
		got = append(got, q)
	}))
	defer s.Close()
	w := newWorld(t, Target{Name: "g", Gotify: &Gotify{URL: s.URL + "/", Token: "app"}}, Target{Name: "n", Ntfy: &Ntfy{URL: s.URL, Topic: "backup", Token: "tk_1"}})
	w.accept(raised(1))
	w.settle()
	w.accept(cleared(1))
	w.settle()
	if len(got) != 4 {
		t.Fatalf("%+v", got)
	}
	g, n, n2 := got[0], got[1], got[3]
	if g.path != "POST /message" || g.h.Get("X-Gotify-Key") != "app" || g.body["priority"] != 8.0 || g.body["title"] != "Alarm: trouble 1" || g.body["message"] != "trouble 1" {
		t.Errorf("%+v", g)
	}
	if n.path != "POST /" || n.h.Get("Authorization") != "Bearer tk_1" || n.body["topic"] != "backup" || n.body["priority"] != 5.0 || n.body["title"] != "Alarm: trouble 1" ||
		fmt.Sprint(n.body["tags"]) != "[rotating_light]" || fmt.Sprint(n2.body["tags"]) != "[white_check_mark]" || n2.body["priority"] != 3.0 {
		t.Errorf("%+v %+v", n, n2)
	}
}

var rfc5424 = regexp.MustCompile(`^<(\d+)>1 (\S+) (\S+) holdfast - (\S+) \[holdfast@32473((?: [^\s="\]]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*)\] \x{FEFF}(.*)$`)

// TestSyslog listens on each kind of socket and reads RFC 5424 messages from it.
func TestSyslog(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ network, listen, address string }{
		{"udp", "udp", "127.0.0.1:0"}, {"tcp", "tcp", "127.0.0.1:0"},
		{"unix", "unixgram", filepath.Join(dir, "dgram")}, {"unix", "unix", filepath.Join(dir, "stream")},
	} {
		t.Run(c.listen, func(t *testing.T) {
			lines := make(chan string, 10)
			address := c.address
			if c.listen == "udp" || strings.HasSuffix(c.listen, "gram") {
				address = listenSyslog(t, c.listen, c.address, lines)
			} else {
				address = acceptSyslog(t, c.listen, c.address, lines)
			}
			w := newWorld(t, Target{Name: "log", Syslog: &Syslog{Network: c.network, Address: address, Hostname: "appliance"}})
			e := raised(1)
			e.Text, e.Fields["a=\"b]"], e.Fields["id"] = "größer\nthan \x00 it was", `q"u]o\te`, "7"
			w.accept(e)
			w.restart()
			w.settle()
			m := rfc5424.FindStringSubmatch(<-lines)
			if m == nil || len(w.events) > 0 {
				t.Fatalf("%+v %+v", w.n.Status(), w.events)
			}
			if m[1] != "129" || m[2] != "2026-06-17T12:00:00.000000Z" || m[3] != "appliance" || m[4] != "something" || m[6] != "Alarm: größer than   it was" {
				t.Errorf("%q", m)
			}
			for _, p := range []string{` alarm="trouble/1"`, ` state="raised"`, ` site="lab"`, ` vm="db"`, ` ab="q\"u\]o\\te"`, ` f_id="7"`} {
				if !strings.Contains(m[5], p) {
					t.Errorf("%s is not in %s", p, m[5])
				}
			}
		})
	}
	s := Syslog{Network: "udp", Address: "127.0.0.1:1"}
	w := newWorld(t)
	m := w.n.newMessage(&holdfast.Event{Text: strings.Repeat("ä", 100000), Fields: map[string]string{"x": strings.Repeat("]", 100000), "y": strings.Repeat("z", 10000)}}, "", Plain, nil)
	if line := s.format(&m); len(line) > maxSyslog || !rfc5424.Match(line) {
		t.Errorf("%d bytes: %.300q", len(line), line)
	}
}

func listenSyslog(t *testing.T, network, address string, lines chan<- string) string {
	c, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			lines <- string(b[:n])
		}
	}()
	return c.LocalAddr().String()
}

func acceptSyslog(t *testing.T, network, address string, lines chan<- string) string {
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(c)
			for { // frames: length, blank, message
				n, err := r.ReadString(' ')
				if err != nil {
					break
				}
				size, err := strconv.Atoi(strings.TrimSpace(n))
				if err != nil {
					t.Errorf("%q is no frame", n)
					break
				}
				b := make([]byte, size)
				if _, err := io.ReadFull(r, b); err != nil {
					t.Error(err)
					break
				}
				lines <- string(b)
			}
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// TestSecretsDoNotShow prints and encodes targets in every way; only Seal gives the secrets out, and Unseal brings them back.
func TestSecretsDoNotShow(t *testing.T) {
	for _, tg := range []Target{
		{Name: "m", Mail: &Mail{Host: "h", From: "a@b.c", To: []string{"a@b.c"}, Password: "hunter2"}},
		{Name: "w", Webhook: &Webhook{URL: "https://h/{token}", Key: "hunter2", Token: "hunter2"}},
		{Name: "n", Ntfy: &Ntfy{URL: "https://h", Topic: "t", Token: "hunter2"}},
		{Name: "g", Gotify: &Gotify{URL: "https://h", Token: "hunter2"}},
	} {
		shown, err := json.Marshal(tg)
		if err != nil {
			t.Fatal(err)
		}
		text := string(shown)
		for _, s := range tg.secrets() {
			text += fmt.Sprintf("%v %+v %#v %s %q", *s, *s, *s, *s, *s)
		}
		text += fmt.Sprintf("%v%+v%#v", tg.Mail, tg.Webhook, tg.Gotify) + fmt.Sprint(tg.Check())
		if strings.Contains(text, "hunter2") || !strings.Contains(text, mask) {
			t.Error(text)
		}
		stored, err := tg.Seal()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Unseal(stored)
		if again, _ := back.Seal(); err != nil || !bytes.Equal(stored, again) || *back.secrets()[0] != "hunter2" {
			t.Errorf("%s, %v", again, err)
		}
		edited, err := Unseal(shown)
		if err != nil || *edited.secrets()[0] != mask {
			t.Errorf("%+v, %v", edited, err)
		}
		edited.KeepSecrets(tg)
		if again, _ := edited.Seal(); !bytes.Equal(stored, again) {
			t.Errorf("%s", again)
		}
	}
}

func TestCheckRefusesWhatCannotWork(t *testing.T) {
	for _, text := range []string{
		`{"name":"x"}`, `{"name":"","gotify":{"url":"http://h","token":"t"}}`, `{"name":"a b","gotify":{"url":"http://h","token":"t"}}`,
		`{"name":"x","gotify":{"url":"http://h","token":"t"},"ntfy":{"url":"http://h","topic":"t"}}`,
		`{"name":"x","gotify":{"url":"http://h"}}`, `{"name":"x","gotify":{"url":"ftp://h","token":"t"}}`, `{"name":"x","gotify":{"url":"http://u:p@h","token":"t"}}`,
		`{"name":"x","ntfy":{"url":"http://h","topic":"a/b"}}`, `{"name":"x","ntfy":{"url":"http://h","topic":"t","ca":"junk"}}`,
		`{"name":"x","webhook":{"url":"http://h/{token}"}}`, `{"name":"x","webhook":{"url":"http://h","content_type":"a\r\nb"}}`,
		`{"name":"x","syslog":{"network":"udp","address":"h"}}`, `{"name":"x","syslog":{"network":"unix","address":"h"}}`, `{"name":"x","syslog":{"network":"x","address":"h:1"}}`,
		`{"name":"x","syslog":{"network":"udp","address":"h:1","facility":24}}`, `{"name":"x","syslog":{"network":"udp","address":"h:1","hostname":"a b"}}`,
		`{"name":"x","mail":{"host":"h","from":"a@b.c","to":[]}}`, `{"name":"x","mail":{"host":"h","from":"a","to":["a@b.c"]}}`, `{"name":"x","mail":{"host":"h","from":"a@b.c","to":["a@b.c\nX: y"]}}`,
		`{"name":"x","mail":{"host":"","from":"a@b.c","to":["a@b.c"]}}`, `{"name":"x","mail":{"host":"h","port":70000,"from":"a@b.c","to":["a@b.c"]}}`,
		`{"name":"x","mail":{"host":"h","security":"ssl","from":"a@b.c","to":["a@b.c"]}}`, `{"name":"x","mail":{"host":"h","auth":"ntlm","from":"a@b.c","to":["a@b.c"]}}`,
		`{"name":"x","flood":{"max":0,"minutes":1},"gotify":{"url":"http://h","token":"t"}}`, `{"name":"x","digest":{"at":"24:00"},"gotify":{"url":"http://h","token":"t"}}`,
	} {
		tg, err := Unseal([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if err := tg.Check(); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{`{"nam":"x"}`, `{`, `{"name":"x","secrets":["a"]}`, `{"rules":[{"windows":["never"]}]}`, strings.Repeat(" ", maxConfig+1)} {
		if _, err := Unseal([]byte(text)); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%.50s: %v", text, err)
		}
	}
}

// TestAHangingTargetEndsWithItsContext, whatever the kind.
func TestAHangingTargetEndsWithItsContext(t *testing.T) {
	at := newSilent(t)
	_, port, _ := net.SplitHostPort(at)
	p, _ := strconv.Atoi(port)
	for _, tg := range []Target{
		{Name: "w", Webhook: &Webhook{URL: "http://" + at}},
		{Name: "m", Mail: &Mail{Host: "127.0.0.1", Port: p, From: "a@b.c", To: []string{"a@b.c"}}},
		{Name: "t", Mail: &Mail{Host: "127.0.0.1", Port: p, Security: TLS, From: "a@b.c", To: []string{"a@b.c"}}},
	} {
		w := newWorld(t)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		if err := w.n.Test(ctx, tg); err == nil {
			t.Errorf("%s: no error", tg.Name)
		}
		cancel()
	}
}
