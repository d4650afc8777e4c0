#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// What any std::pmr::memory_resource must do, as one function that returns what it found wrong. Needs no test
/// framework; conformance_gtest.hpp has tests for GoogleTest made of it.
///
/// \verbatim
///   check_conformance(build)
///     build(upstream) ──> resource, or chain with it on top ──> recording upstream, which keeps the accounts
/// \endverbatim
///
/// \code
///   #include <pmr_debug/testing/conformance.hpp>
///   using namespace pmr_debug::testing;
///   const auto found = check_conformance(resource_builder_of<pmr_debug::tracking_resource>(), {.threads = 3});
///   assert(found.empty());  // else found[0].text says what is wrong
/// \endcode
///
/// Asked of the resource: memory for every size and power-of-two alignment, aligned, disjoint, and unchanged until it
/// is freed, in any order of frees and from any thread; unique addresses for zero bytes; std::bad_alloc, and nothing
/// else, for sizes that cannot be, and business as usual afterwards; an equality that is an equivalence, does not
/// change with use, and means that each frees what the other allocated. Asked of its use of the upstream: powers of two
/// only; every block given back once, with the size and alignment it was asked for, and not written to later; nothing
/// kept at the end; nothing lost and nothing harmed when the upstream refuses.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <memory_resource>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace pmr_debug::testing {

/// What is looked at, each with resources of its own.
enum class conformance_part : std::uint8_t {
    sizes_and_alignments,
    random_order,
    zero_bytes,
    over_alignment,
    impossible_sizes,
    equality,
    threads,  ///< only if the options ask for threads
    refusing_upstream,
};
inline constexpr std::size_t conformance_part_count = 8;

/// What can be wrong.
enum class conformance_error : std::uint8_t {
    not_built,                  ///< the builder threw, or made nothing
    null_returned,              ///< `allocate` returned null
    misaligned,                 ///< memory without the alignment asked for
    overlap,                    ///< memory that is in use already; for zero bytes: an address that is
    contents_changed,           ///< a block's bytes changed while it was in use
    refused,                    ///< std::bad_alloc for what should be possible
    impossible_granted,         ///< memory for a size that cannot be
    wrong_exception,            ///< `allocate` threw something else than std::bad_alloc, or `deallocate` threw
    not_reflexive,              ///< not equal to itself
    not_symmetric,              ///< a equals b, and b does not equal a
    not_transitive,             ///< a equals b, b equals c, and a does not equal c
    equality_changed,           ///< equal before they were used and not afterwards, or the other way round
    not_interchangeable,        ///< equal, and yet one cannot free what the other allocated
    upstream_bad_request,       ///< asked the upstream for an alignment that is no power of two
    upstream_mismatch,          ///< gave a block back with another size or alignment than it was asked for
    upstream_unknown,           ///< gave back what is none of the upstream's blocks
    upstream_double_free,       ///< gave a block back twice
    upstream_leak,              ///< gave a block back never
    upstream_write_after_free,  ///< wrote to a block after giving it back
    upstream_unused,  ///< refusing_upstream looked at nothing, as the resource takes nothing from the upstream
};

/// Returns: the enumerator's name, as in `random_order`.
[[nodiscard]] std::string_view to_string(conformance_part p) noexcept;
[[nodiscard]] std::string_view to_string(conformance_error e) noexcept;

/// A set of parts.
class conformance_parts {
public:
    constexpr conformance_parts() noexcept = default;
    constexpr conformance_parts(std::initializer_list<conformance_part> parts) noexcept {
        for (const conformance_part p : parts) {
            bits_ |= bit(p);
        }
    }
    [[nodiscard]] constexpr bool contains(conformance_part p) const noexcept { return (bits_ & bit(p)) != 0; }
    [[nodiscard]] static constexpr conformance_parts all_but(conformance_part p) noexcept {
        conformance_parts all;
        all.bits_ = ((1U << conformance_part_count) - 1) & ~bit(p);
        return all;
    }

private:
    static constexpr unsigned bit(conformance_part p) noexcept { return 1U << static_cast<unsigned>(p); }
    unsigned bits_ = 0;
};

/// What is known of the resource. Sizes in bytes.
struct conformance_options {
    std::size_t largest_block = std::size_t{1} << 16;      ///< largest block that must be granted
    std::size_t largest_alignment = std::size_t{1} << 12;  ///< largest alignment asked for in all parts but the next
    std::size_t over_alignment = std::size_t{1} << 21;     ///< largest alignment of the part over_alignment
    std::size_t steps = 2000;                              ///< allocations and frees in random order, for each thread
    unsigned threads = 0;                                  ///< that use it at once. 0: it is not made for that
    bool may_refuse = false;                               ///< std::bad_alloc is no mistake, as with a limited resource
    std::uint64_t seed = 1;                                ///< of sizes, contents and order
    conformance_parts skip{};                              ///< not to be looked at
};

/// One kind of mistake in one part.
struct conformance_finding {
    conformance_part part;
    conformance_error error;
    std::uint64_t count;  ///< how often it was found
    std::string text;     ///< the first one in words
};

/// Makes a resource, or a chain, over an upstream that outlives it.
using resource_builder = std::function<std::shared_ptr<std::pmr::memory_resource>(std::pmr::memory_resource& upstream)>;

/// Effects: builds the resource several times and asks it for everything it must do.
/// Returns: what it does wrong, in the order in which it was found; empty if nothing was.
/// Throws: std::bad_alloc, if there is no memory for the examination itself. Nothing that the resource or the builder
///   throws comes out.
/// Thread safety: any. Resources of a policy that binds them to a thread are used by the calling one, and, with
///   `threads`, by those.
/// A resource that reports to a handler may report meanwhile; that is for the caller to look at.
[[nodiscard]] std::vector<conformance_finding> check_conformance(const resource_builder& build,
                                                                 const conformance_options& o = {});

// ---- builders -------------------------------------------------------------------------------------------------------

/// Resources on top of each other, the first on top. One that takes no upstream is the bottom. What converts to a
/// resource, as a struct that holds one with its options does, counts as one.
///
/// \code
///   #include <pmr_debug/testing/conformance.hpp>
///   pmr_debug::page_resource pages;
///   pmr_debug::testing::resource_chain<pmr_debug::tracking_resource, std::pmr::monotonic_buffer_resource>
///   chain(pages); std::pmr::vector<int> v(&chain.top());
/// \endcode
template <class Top, class... Below>
class resource_chain {
public:
    explicit resource_chain(std::pmr::memory_resource& upstream) : below_(upstream), top_(make<Top>(below_.top())) {}
    [[nodiscard]] Top& top() noexcept { return top_; }

    template <class Resource>
    static Resource make(std::pmr::memory_resource& upstream) {
        if constexpr (std::is_constructible_v<Resource, std::pmr::memory_resource*>) {
            return Resource(&upstream);
        } else {
            return Resource();
        }
    }

private:
    resource_chain<Below...> below_;
    Top top_;
};

template <class Top>
class resource_chain<Top> {
public:
    explicit resource_chain(std::pmr::memory_resource& upstream)
        : top_(resource_chain<Top, Top>::template make<Top>(upstream)) {}
    [[nodiscard]] Top& top() noexcept { return top_; }

private:
    Top top_;
};

/// Returns: a builder of `resource_chain<Resources...>`.
template <class... Resources>
[[nodiscard]] resource_builder resource_builder_of() {
    return [](std::pmr::memory_resource& upstream) {
        const auto chain = std::make_shared<resource_chain<Resources...>>(upstream);
        std::pmr::memory_resource& top = chain->top();
        return std::shared_ptr<std::pmr::memory_resource>(chain, &top);
    };
}

/// Returns: a builder that hands out \p existing, which outlives the examination, each time.
[[nodiscard]] inline resource_builder resource_builder_for(std::pmr::memory_resource& existing) {
    return [&existing](std::pmr::memory_resource&) {
        return std::shared_ptr<std::pmr::memory_resource>(&existing, [](std::pmr::memory_resource*) {});
    };
}

}  // namespace pmr_debug::testing

#endif  // PMR_DEBUG_LANGUAGE
