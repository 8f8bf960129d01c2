"""Which of ATen's operators a stranger's program may call: those that check what they are given."""

import functools

import torch

# They read and write files.
FILE_OPERATORS = frozenset({"from_file", "save"})

# A leading underscore is ATen's mark of an operator that others call after they have checked for it. Of these, its own
# core set is as safe as the public ones, and so are the ones that torch writes into programs itself.
_NAMES = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _embedding_bag _fft_c2c _fft_c2r _fft_r2c
    _local_scalar_dense _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _pdist_forward _softmax _to_copy
    _assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async _functional_assert_scalar
    _functional_sym_constrain_range _functional_sym_constrain_range_for_size
    _batch_norm_impl_index _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short
    _conj _convolution _convolution_mode _fused_rms_norm _is_all_true _is_any_true _neg_view _pad_circular _pad_enum
    _reshape_from_tensor _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu
    _shape_as_tensor _stack _to_cpu _unique2 _unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_lanczos2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm
    _weight_norm_interface _pack_padded_sequence _pad_packed_sequence _native_multi_head_attention
    _transformer_encoder_layer_fwd _prelu_kernel _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd
"""
_CHECKED = frozenset(_NAMES.split())
# Public, and yet: the first can be told not to check, the others follow addresses that stand in a tensor.
_UNCHECKED = ("segment_reduce", "fbgemm_")


@functools.cache
def find_unchecked() -> frozenset[str]:
    """The names of the operators that may reach beyond a tensor's memory."""
    names = {schema.name.removeprefix("aten::") for schema in torch._C._jit_get_all_schemas()}
    return frozenset(
        name
        for name in names
        if name.startswith(_UNCHECKED)
        or (name.startswith("_") and not name.startswith("__") and "::" not in name and name not in _CHECKED)
    )
