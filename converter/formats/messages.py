"""The protobuf messages of checkpoints, for the runtime alone: no generated code.

They live in a descriptor pool of their own, so that they do not clash with TensorFlow's, and the
pool is built when the first message is asked for.

References:
    tensorflow/core/protobuf: tensor_bundle.proto, trackable_object_graph.proto;
    meta_graph.proto, saved_model.proto, saver.proto; tensorflow/core/framework: versions.proto,
    tensor_shape.proto, tensor_slice.proto, graph.proto, node_def.proto, attr_value.proto,
    function.proto, tensor.proto, variable.proto.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from converter.errors import InputError

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

# One line for each field: number, name, type. `*` is repeated, `?` tells absence from zero. An
# enum is an int32. What we never show is bytes where it is a string, and so cannot be bad UTF-8.
_MESSAGES = {
    "VersionDef": ["1 producer int32", "2 min_consumer int32", "3 bad_consumers *int32"],
    "BundleHeaderProto": ["1 num_shards int32", "2 endianness int32", "3 version VersionDef"],
    "BundleEntryProto": [
        "1 dtype int32",
        "2 shape TensorShapeProto",
        "3 shard_id int32",
        "4 offset int64",
        "5 size int64",
        "6 crc32c fixed32",
        "7 slices *TensorSliceProto",
    ],
    "TensorShapeProto": ["2 dim *Dim", "3 unknown_rank bool"],
    "Dim": ["1 size int64", "2 name bytes"],
    "TensorSliceProto": ["1 extent *Extent"],
    "Extent": ["1 start int64", "2 length ?int64"],
    "TrackableObjectGraph": ["1 nodes *TrackableObject"],
    "TrackableObject": [
        "1 children *ObjectReference",
        "2 attributes *SerializedTensor",
        "3 slot_variables *SlotVariableReference",
        "4 registered_saver RegisteredSaver",
        "5 has_checkpoint_values BoolValue",
    ],
    "ObjectReference": ["1 node_id int32", "2 local_name string"],
    "SerializedTensor": ["1 name string", "2 full_name string", "3 checkpoint_key string"],
    "SlotVariableReference": [
        "1 original_variable_node_id int32",
        "2 slot_name string",
        "3 slot_variable_node_id int32",
    ],
    "RegisteredSaver": ["1 name string", "2 object_name string"],
    "BoolValue": ["1 value bool"],
    # Graphs. A map is repeated entries, and the tensor of a constant stays unread.
    "SavedModel": ["2 meta_graphs *MetaGraphDef"],
    "MetaGraphDef": [
        "1 meta_info_def MetaInfoDef",
        "2 graph_def GraphDef",
        "3 saver_def SaverDef",
        "4 collection_def *CollectionEntry",
        "5 signature_def *SignatureEntry",
        "7 object_graph_def bytes",
    ],
    "MetaInfoDef": [
        "2 stripped_op_list bytes",
        "4 tags *bytes",
        "5 tensorflow_version bytes",
    ],
    "SaverDef": [
        "1 filename_tensor_name bytes",
        "2 save_tensor_name bytes",
        "3 restore_op_name bytes",
    ],
    "CollectionEntry": ["1 key bytes", "2 value CollectionDef"],
    "CollectionDef": ["1 node_list BytesList", "2 bytes_list BytesList"],
    "BytesList": ["1 value *bytes"],
    "SignatureEntry": ["1 key bytes", "2 value SignatureDef"],
    "SignatureDef": ["1 inputs *TensorInfoEntry", "2 outputs *TensorInfoEntry"],
    "TensorInfoEntry": ["1 key bytes", "2 value TensorInfo"],
    "TensorInfo": ["1 name bytes", "2 dtype int32", "3 tensor_shape TensorShapeProto"],
    "GraphDef": ["1 node *NodeDef", "2 library FunctionDefLibrary", "4 versions VersionDef"],
    "FunctionDefLibrary": ["1 function *FunctionDef"],
    "FunctionDef": [
        "1 signature OpDef",
        "3 node_def *NodeDef",
        "4 ret *FunctionReturn",
        "5 attr *AttrEntry",
        "7 arg_attr *ArgAttrEntry",
    ],
    "ArgAttrEntry": ["1 key uint32", "2 value ArgAttrs"],
    "ArgAttrs": ["1 attr *AttrEntry"],
    "FunctionReturn": ["1 key bytes", "2 value bytes"],
    "OpDef": ["1 name bytes", "2 input_arg *ArgDef", "3 output_arg *ArgDef"],
    "ArgDef": ["1 name bytes", "3 type int32"],
    "NodeDef": [
        "1 name bytes",
        "2 op bytes",
        "3 input *bytes",
        "4 device bytes",
        "5 attr *AttrEntry",
    ],
    "AttrEntry": ["1 key bytes", "2 value AttrValue"],
    "AttrValue": [
        "1 list AttrList",
        # One of these is there, which says what kind of value it is: False and 0 are written too.
        "2 s ?bytes",
        "3 i ?int64",
        "4 f ?float",
        "5 b ?bool",
        "6 type ?int32",
        "7 shape TensorShapeProto",
        "8 tensor ?bytes",
        "10 func NameAttrList",
    ],
    "AttrList": [
        "2 s *bytes",
        "3 i *int64",
        "4 f *float",
        "5 b *bool",
        "6 type *int32",
        "7 shape *TensorShapeProto",
        "9 func *NameAttrList",
    ],
    "NameAttrList": ["1 name bytes"],
    # The small constants of a graph; what may be large is read by tensor_proto.
    "TensorProto": [
        "1 dtype int32",
        "2 tensor_shape TensorShapeProto",
        "4 tensor_content bytes",
        "5 float_val *float",
        "6 double_val *double",
        "7 int_val *int32",
        "8 string_val *bytes",
        "10 int64_val *int64",
        "11 bool_val *bool",
        "13 half_val *int32",
    ],
    "TensorHead": ["1 dtype int32", "2 tensor_shape TensorShapeProto"],
    "VariableDef": ["1 variable_name bytes", "4 save_slice_info_def SaveSliceInfoDef"],
    "SaveSliceInfoDef": [
        "1 full_name bytes",
        "2 full_shape *int64",
        "3 var_offset *int64",
        "4 var_shape *int64",
    ],
}

_PACKAGE = "ckpt_converter"

_TEXT_GRAPH = re.compile(
    rb"\s*(#[^\n]*\n\s*)*"
    rb"(node|library|versions?|graph_def|meta_info_def|meta_graphs|saved_model_schema_version)"
    rb"\s*[:{]"
)


@cache
def message(name: str) -> Any:
    """Return the class of a message, for instance `TrackableObjectGraph`."""
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def parse(name: str, data: bytes, subject: str) -> Any:
    """Return the message `name` that `data` hold.

    Raises:
        InputError: they hold none; it begins with `subject`.
    """
    return parser(name)(data, subject)


def parser(name: str, within: str = "") -> Callable[[bytes, str], Any]:
    """Return `parse` for many messages of one name, and a common beginning of their subjects."""
    from google.protobuf.message import DecodeError

    from_string = message(name).FromString

    def parse(data: bytes, subject: str) -> Any:
        try:
            return from_string(data)
        except DecodeError:
            raise InputError(
                f"{within}{subject} is damaged: its {len(data)} bytes are no {name}"
            ) from None

    return parse


def is_text_graph(data: bytes) -> bool:
    """Whether a file that begins so holds a graph as text, which people take for a binary one."""
    return _TEXT_GRAPH.match(data) is not None


@cache
def _pool() -> DescriptorPool:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool

    file = FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        descriptor = file.message_type.add(name=name)
        for line in fields:
            number, field_name, kind = line.split()
            field = descriptor.field.add(
                name=field_name,
                number=int(number),
                label=FieldDescriptorProto.LABEL_REPEATED
                if kind.startswith("*")
                else FieldDescriptorProto.LABEL_OPTIONAL,
            )
            if kind.startswith("?"):
                # Presence in proto3 is a oneof with one member.
                field.proto3_optional = True
                field.oneof_index = len(descriptor.oneof_decl)
                descriptor.oneof_decl.add(name=f"_{field_name}")
            kind = kind.lstrip("*?")
            if kind in _MESSAGES:
                field.type = FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
            else:
                field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    pool = DescriptorPool()
    pool.Add(file)
    return pool
