#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// What the constructors of all resources take besides options.

#include <concepts>
#include <cstddef>
#include <memory_resource>

namespace pmr_debug::detail {

/// An upstream as an argument: a pointer, or what converts to one, `gsl::not_null` included. Not `nullptr` and not
/// `{}`: these would be a null pointer to any parameter that is a plain pointer, and `{}` means default options. A
/// pointer that turns out to be null is for the resource to report.
class upstream_argument {
public:
    template <class T>
    requires(std::convertible_to<const T&, std::pmr::memory_resource*> && !std::same_as<T, std::nullptr_t>)
        upstream_argument(const T& upstream)
        : pointer_(upstream) {}

    [[nodiscard]] std::pmr::memory_resource* get() const noexcept { return pointer_; }

private:
    std::pmr::memory_resource* pointer_;
};

/// Returns: \p n, or 0 if it is negative, which as a size would be nearly all memory.
[[nodiscard]] constexpr std::size_t at_least_zero(std::integral auto n) noexcept {
    return n < decltype(n){} ? 0 : static_cast<std::size_t>(n);
}

/// What `{}` alone becomes. To an enumeration that is no conversion at all, so it comes before the options and before
/// the copy constructor, between which `{}` would be ambiguous.
enum class empty_braces : unsigned char {};

}  // namespace pmr_debug::detail

#endif  // PMR_DEBUG_LANGUAGE
