package identity

import (
	"fmt"

	"google.golang.org/grpc/mem"
)

// bytesCodec hands messages over as they are on the wire.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("cannot send %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	into, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("cannot read into %T", v)
	}
	*into = data.Materialize()
	return nil
}

func (bytesCodec) Name() string { return "proto" }
