package wire

import (
	"bufio"
	"io"

	"github.com/holdfast-backup/holdfast"
)

// A StreamWriter carries messages one way without a link: an HTTP body, a file. The stream is a Hello frame with the one version it is written
// in, then messages, each whole in the numbering of a link. SetOpened comes first, then Parcels and Delivered; Done or Fail ends it.
// A stream without such an end is not complete. It is not safe for concurrent use.
type StreamWriter struct {
	bw  *bufio.Writer
	seq uint32
	err error
}

// NewStreamWriter starts a stream. The caller ends it with Done or Fail.
func NewStreamWriter(w io.Writer) *StreamWriter {
	s := &StreamWriter{bw: bufio.NewWriterSize(w, connBuffer)}
	h := hello{versions: Versions()[:1]}
	s.write(control(TypeHello, h.append(nil)))
	return s
}

func (s *StreamWriter) write(f *frame) {
	if s.err == nil {
		_, s.err = s.bw.Write(f.b)
	}
	f.free()
}

// Send writes one message; buffers in it are the caller's again on return.
func (s *StreamWriter) Send(m Message) error {
	fs, err := encode(&m)
	if err != nil {
		return err
	}
	for i, f := range fs {
		s.seq++
		h := header{typ: m.Type, channel: m.Channel, seq: s.seq}
		if i < len(fs)-1 {
			h.flags = flagMore
		}
		f.seal(h)
		s.write(f)
	}
	return s.err
}

// Done ends the stream well and flushes it.
func (s *StreamWriter) Done() error { return s.end(Message{Type: TypeDone}) }

// Fail ends the stream with the reason why it is not complete, and flushes it.
func (s *StreamWriter) Fail(cause error) error {
	return s.end(Message{Type: TypeFail, Body: FailureOf(cause)})
}

func (s *StreamWriter) end(m Message) error {
	if err := s.Send(m); err != nil {
		return err
	}
	s.err = s.bw.Flush()
	return s.err
}

// Flush hands everything written so far on.
func (s *StreamWriter) Flush() error {
	if s.err == nil {
		s.err = s.bw.Flush()
	}
	return s.err
}

// A StreamReader reads what a StreamWriter wrote. It is not safe for concurrent use.
type StreamReader struct {
	br  *bufio.Reader
	seq uint32
	err error
}

// NewStreamReader returns a reader of the stream.
func NewStreamReader(r io.Reader) *StreamReader {
	return &StreamReader{br: bufio.NewReaderSize(r, connBuffer)}
}

// Next returns the next message, which is the caller's until Message.Release. After Done it returns io.EOF; a Fail is returned as its error; a stream
// that stops without either is Offline.
func (s *StreamReader) Next() (Message, error) {
	if s.err != nil {
		return Message{}, s.err
	}
	m, err := s.next()
	switch {
	case err != nil:
		if !isViolation(err) {
			err = offline("read stream", err)
		}
	case m.Type == TypeDone:
		err = io.EOF
	case m.Type == TypeFail:
		err = m.Body.(Failure).AsError()
	}
	if err != nil {
		s.err = err
		return Message{}, err
	}
	return m, nil
}

func (s *StreamReader) next() (Message, error) {
	if s.seq == 0 {
		if err := s.start(); err != nil {
			return Message{}, err
		}
	}
	var whole []byte
	var first header
	for {
		f, h, err := readFrame(s.br, MaxFrame)
		if err != nil {
			return Message{}, err
		}
		s.seq++
		if h.seq != s.seq || (first.typ != 0 && (h.typ != first.typ || h.channel != first.channel)) {
			return Message{}, violated(holdfast.Invalid, "frame %d (%v) is not in its place", h.seq, h.typ)
		}
		if h.flags&flagMore == 0 && first.typ == 0 {
			return parse(h.typ, h.channel, f.payload(), f)
		}
		first = h
		if most, _ := h.typ.limit(); len(whole)+int(h.length) > most || (h.flags&flagMore != 0 && h.length != MaxFrame) {
			return Message{}, violated(holdfast.Invalid, "a %v message is cut wrongly or longer than %d bytes", h.typ, most)
		}
		whole = append(whole, f.payload()...)
		f.free()
		if h.flags&flagMore == 0 {
			return parse(h.typ, h.channel, whole, nil)
		}
	}
}

// start reads the Hello.
func (s *StreamReader) start() error {
	f, h, err := readFrame(s.br, maxEarly)
	if err != nil {
		return err
	}
	defer f.free()
	if h.typ != TypeHello {
		return violated(holdfast.Invalid, "a %v frame instead of Hello", h.typ)
	}
	vs, _, err := parseHelloVersions(f.payload())
	if err != nil {
		return err
	}
	if _, err := choose(Versions(), vs); err != nil {
		return err
	}
	_, err = parseHello(f.payload())
	return err
}
