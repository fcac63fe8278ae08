package notify

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"
)

// smtpSink is a mail server on loopback that keeps what it accepts. It speaks EHLO, STARTTLS, AUTH PLAIN and LOGIN, MAIL, RCPT, DATA, RSET and
// QUIT. Its knobs make it refuse and break.
type smtpSink struct {
	listener net.Listener
	tls      *tls.Config
	wrap     bool   // TLS from the first byte
	noTLS    bool   // does not offer STARTTLS
	user     string // demands authentication
	password string

	wg sync.WaitGroup

	mu      sync.Mutex
	mails   []received
	deny    map[string]string // recipient → answer
	denyAll string            // answer to every MAIL
	cut     bool              // hangs up after accepting a mail, before QUIT
	lose    bool              // accepts a mail, but hangs up without saying so
	conns   int
	open    map[net.Conn]bool
}

type received struct {
	from, to string
	secure   bool
	user     string
	header   mail.Header
	subject  string
	body     string
}

func newSMTPSink(t *testing.T, set func(*smtpSink)) *smtpSink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &smtpSink{listener: l, deny: map[string]string{}, open: map[net.Conn]bool{}}
	cert, _ := testCertificate(t)
	s.tls = &tls.Config{Certificates: []tls.Certificate{cert}}
	if set != nil {
		set(s)
	}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			s.open[c] = true
			s.mu.Unlock()
			s.wg.Go(func() {
				s.serve(c)
				s.mu.Lock()
				delete(s.open, c)
				s.mu.Unlock()
			})
		}
	})
	t.Cleanup(s.close)
	return s
}

func (s *smtpSink) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *smtpSink) port() int { return s.listener.Addr().(*net.TCPAddr).Port }

func (s *smtpSink) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *smtpSink) taken() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]received{}, s.mails...)
}

func (s *smtpSink) serve(c net.Conn) {
	defer c.Close() //nolint:errcheck // a test's server
	secure := false
	if s.wrap {
		c, secure = tls.Server(c, s.tls), true
	}
	tp := textproto.NewConn(c)
	say := func(format string, args ...any) { _ = tp.PrintfLine(format, args...) }
	say("220 sink ESMTP")
	var from, user string
	var to []string
	for {
		line, err := tp.ReadLine()
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(line, " ")
		s.mu.Lock()
		denyAll, cut, lose := s.denyAll, s.cut, s.lose
		s.mu.Unlock()
		switch verb = strings.ToUpper(verb); {
		case verb == "EHLO":
			s.hello(say, secure)
		case verb == "STARTTLS" && !secure:
			say("220 go on")
			c = tls.Server(c, s.tls)
			tp, secure = textproto.NewConn(c), true
		case verb == "AUTH":
			if user = s.auth(tp, arg); user == "" {
				say("535 5.7.8 wrong user or password")
			} else {
				say("235 welcome")
			}
		case verb == "MAIL" && s.user != "" && user == "":
			say("530 5.7.0 authentication required")
		case verb == "MAIL" && denyAll != "":
			say("%s", denyAll)
		case verb == "MAIL":
			from, to = address(arg), nil
			say("250 ok")
		case verb == "RCPT":
			if no := s.denial(address(arg)); no != "" {
				say("%s", no)
				break
			}
			to = append(to, address(arg))
			say("250 ok")
		case verb == "DATA":
			say("354 go on")
			data, err := io.ReadAll(tp.DotReader())
			if err != nil {
				return
			}
			s.keep(from, to, user, secure, data)
			if lose {
				return
			}
			say("250 accepted")
			if cut {
				return
			}
		case verb == "QUIT":
			say("221 bye")
			return
		case verb == "RSET", verb == "NOOP":
			say("250 ok")
		default:
			say("500 what?")
		}
	}
}

func (s *smtpSink) hello(say func(string, ...any), secure bool) {
	say("250-sink")
	if !secure && !s.noTLS {
		say("250-STARTTLS")
	}
	if s.user != "" {
		say("250-AUTH PLAIN LOGIN")
	}
	say("250 8BITMIME")
}

func (s *smtpSink) denial(recipient string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deny[recipient]
}

func (s *smtpSink) auth(tp *textproto.Conn, arg string) string {
	ask := func(q string) string {
		_ = tp.PrintfLine("334 %s", base64.StdEncoding.EncodeToString([]byte(q)))
		l, _ := tp.ReadLine()
		b, _ := base64.StdEncoding.DecodeString(l)
		return string(b)
	}
	mech, initial, _ := strings.Cut(arg, " ")
	var user, password string
	if mech == "LOGIN" {
		user, password = ask("Username:"), ask("Password:")
	} else {
		b, _ := base64.StdEncoding.DecodeString(initial)
		if parts := strings.Split(string(b), "\x00"); len(parts) == 3 {
			user, password = parts[1], parts[2]
		}
	}
	if user != s.user || password != s.password {
		return ""
	}
	return user
}

func (s *smtpSink) keep(from string, to []string, user string, secure bool, data []byte) {
	m, err := mail.ReadMessage(strings.NewReader(string(data)))
	if err != nil {
		panic(fmt.Sprintf("the mail cannot be read: %v\n%s", err, data))
	}
	var body io.Reader = m.Body
	if strings.EqualFold(m.Header.Get("Content-Transfer-Encoding"), "quoted-printable") {
		body = quotedprintable.NewReader(bufio.NewReader(body))
	}
	text, err := io.ReadAll(body)
	if err != nil {
		panic(err)
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range to {
		s.mails = append(s.mails, received{from, t, secure, user, m.Header, subject, string(text)})
	}
}

func address(arg string) string {
	_, a, _ := strings.Cut(arg, "<")
	a, _, _ = strings.Cut(a, ">")
	return a
}

var certificate = sync.OnceValues(func() (tls.Certificate, string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sink"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
})

// testCertificate returns a certificate for 127.0.0.1 that signs itself, and its PEM.
func testCertificate(*testing.T) (tls.Certificate, string) { return certificate() }

// newSilent returns the address of a server that takes connections and says nothing.
func newSilent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // the kernel takes the connections
	return l.Addr().String()
}
