package replay

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	"google.golang.org/protobuf/proto"
)

// Ways in which a file is not a recording.
var (
	errNotCapture = errors.New("not a recording of length-delimited StreamMetricsMessages")
	errTruncated  = errors.New("file is truncated")
	errEmpty      = errors.New("file holds no messages")
	errNoNode     = errors.New("first message says no node: a recording begins where its stream began")
	errTimes      = errors.New("not receive times, one a line in unix milliseconds, for every message")
)

// maxMessage bounds one message of a recording: four times what a sink takes by default.
const maxMessage = 256 << 20

// reader reads the messages of a recording.
type reader struct {
	r      *bufio.Reader
	offset int64 // of the next message, in the file as it is without gzip
	buf    bytes.Buffer
}

// newReader returns a reader of a recording, gzipped or not.
func newReader(r io.Reader) (*reader, error) {
	b := bufio.NewReader(r)
	if magic, _ := b.Peek(2); !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return &reader{r: b}, nil
	}
	z, err := gzip.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotCapture, err)
	}
	return &reader{r: bufio.NewReader(z)}, nil
}

// next reads a message and returns its size. At the end it returns io.EOF; other errors say at
// which byte.
func (r *reader) next(m *metricsv3.StreamMetricsMessage) (size int, err error) {
	length, err := binary.ReadUvarint(r.r)
	if errors.Is(err, io.EOF) {
		return 0, io.EOF
	}
	if err != nil {
		return 0, r.fail(err)
	}
	if length > maxMessage {
		return 0, r.fail(fmt.Errorf("%w: a message of %d bytes", errNotCapture, length))
	}
	r.buf.Reset()
	if _, err := io.CopyN(&r.buf, r.r, int64(length)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, r.fail(err)
	}
	if err := proto.Unmarshal(r.buf.Bytes(), m); err != nil {
		return 0, r.fail(fmt.Errorf("%w: %w", errNotCapture, err))
	}
	r.offset += int64(len(binary.AppendUvarint(nil, length))) + int64(length)
	return int(length), nil
}

// fail says where reading failed, and that a file which ends too early is truncated.
func (r *reader) fail(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = errTruncated
	case !errors.Is(err, errNotCapture):
		err = fmt.Errorf("%w: %w", errNotCapture, err)
	}
	return fmt.Errorf("message at byte %d: %w", r.offset, err)
}

// timesPath is the name of the file that holds a recording's receive times.
func timesPath(path string) string {
	return strings.TrimSuffix(strings.TrimSuffix(path, ".gz"), ".pb") + ".times"
}

// readTimes returns the receive times beside a recording in unix milliseconds, nil where there is
// no such file.
func readTimes(path string) ([]int64, error) {
	b, err := os.ReadFile(timesPath(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	times, err := parseTimes(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", timesPath(path), err)
	}
	return times, nil
}

// parseTimes reads lines that begin with a time; what follows on a line is not read.
func parseTimes(text string) ([]int64, error) {
	times := []int64{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		t, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil || t <= 0 || t > maxTime {
			return nil, fmt.Errorf("%w: line %q", errTimes, strings.TrimSpace(line))
		}
		times = append(times, t)
	}
	return times, nil
}
