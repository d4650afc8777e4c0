#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Not for users. Exceptions are thrown and caught in the library, which is compiled with them, so that the headers are
/// of use to code that is compiled without (`-fno-exceptions`).

#include <cstdint>
#include <memory>

namespace pmr_debug::detail {

enum class call_end : std::uint8_t { returned, threw_bad_alloc, threw_something_else };

/// Effects: calls \p call(\p context). Returns: how that ended.
[[nodiscard]] call_end end_of_call(void (*call)(void*), void* context) noexcept;

/// Effects: as end_of_call(), but lets other exceptions than std::bad_alloc through. Returns: whether that came out.
[[nodiscard]] bool throws_bad_alloc(void (*call)(void*), void* context);

/// Throws: std::bad_alloc.
[[noreturn]] void throw_bad_alloc();

template <class Call>
void call_it(void* call) {
    (*static_cast<const Call*>(call))();
}
template <class Call>
[[nodiscard]] call_end end_of_call(const Call& call) noexcept {
    return end_of_call(call_it<Call>, const_cast<Call*>(std::addressof(call)));
}
template <class Call>
[[nodiscard]] bool throws_bad_alloc(const Call& call) {
    return throws_bad_alloc(call_it<Call>, const_cast<Call*>(std::addressof(call)));
}

}  // namespace pmr_debug::detail

#endif  // PMR_DEBUG_LANGUAGE
