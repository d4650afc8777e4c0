#include <pmr_debug/testing/conformance.hpp>

#include "resources/upstream.hpp"
#include "testing/conformance_blocks.hpp"
#include "testing/conformance_findings.hpp"
#include "testing/conformance_upstream.hpp"

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <thread>
#include <utility>

namespace pmr_debug::testing {

namespace detail {

void conformance_findings::add(conformance_error error, const std::string& what) {
    const std::scoped_lock hold(lock_);
    const auto known = std::find_if(all_.begin(), all_.end(),
                                    [&](const conformance_finding& f) { return f.part == part_ && f.error == error; });
    if (known != all_.end()) {
        ++known->count;
    } else {
        all_.push_back({part_, error, 1, std::string(to_string(part_)) + ": " + what});
    }
}

namespace {

using memory_resource = std::pmr::memory_resource;
using error = conformance_error;

/// All that a part needs.
struct examination {
    const resource_builder& build;
    const conformance_options& options;
    conformance_findings& out;
};

/// Returns: a new resource; null, and a finding, if there is none.
std::shared_ptr<memory_resource> built(const examination& e, memory_resource& upstream) {
    std::shared_ptr<memory_resource> r;
    try {
        r = e.build(upstream);
        if (r == nullptr) {
            e.out.add(error::not_built, "the builder made nothing");
        }
    } catch (const std::exception& x) {
        e.out.add(error::not_built, std::string("the builder threw: ") + x.what());
    } catch (...) {
        e.out.add(error::not_built, "the builder threw");
    }
    return r;
}

// ---- one resource, one thread ---------------------------------------------------------------------------------------

/// Every size next to a power of two, for each alignment in [\p least, \p most].
void sizes_for_alignments(const examination& e, memory_resource& r, std::size_t least, std::size_t most) {
    std::vector<std::size_t> sizes{0};
    for (std::size_t power = 1; power <= e.options.largest_block; power *= 2) {
        for (const std::size_t size : {power - 1, power, power + 1}) {
            if (size > sizes.back() && size <= e.options.largest_block) {
                sizes.push_back(size);
            }
        }
    }
    held_blocks blocks(r, e.options, 1, e.out);
    random_numbers random(e.options.seed);
    for (std::size_t alignment = least; alignment <= most; alignment *= 2) {
        for (const std::size_t size : sizes) {
            blocks.take(size, alignment);
        }
        if (blocks.count() > 200) {
            blocks.free_all(random);
        }
    }
    blocks.free_all(random);
}

void sizes_and_alignments(const examination& e, memory_resource& r) {
    sizes_for_alignments(e, r, 1, e.options.largest_alignment);
}

/// A few sizes only: each block takes at least its alignment.
void over_alignment(const examination& e, memory_resource& r) {
    held_blocks blocks(r, e.options, 2, e.out);
    random_numbers random(e.options.seed + 1);
    for (std::size_t alignment = 1024; alignment <= e.options.over_alignment; alignment *= 2) {
        for (const std::size_t size : {std::size_t{1}, std::size_t{5000}, std::size_t{1}}) {
            blocks.take(size, alignment);
        }
        blocks.take(24, 8);
        if (blocks.count() > 20) {
            blocks.free_all(random);
        }
    }
    blocks.free_all(random);
}

/// Takes and frees at random; what is held at the end is left to the caller.
void churn(const examination& e, held_blocks& blocks, random_numbers& random) {
    for (std::size_t step = 0; step < e.options.steps; ++step) {
        if (blocks.count() != 0 && random.below(5) < 2) {
            blocks.free_one(random.below(blocks.count()));
            continue;
        }
        const std::size_t end = random.below(16) == 0 ? e.options.largest_block + 1 : 256;
        const std::size_t bytes = std::min(random.below(end), e.options.largest_block);
        blocks.take(bytes, std::min(std::size_t{1} << random.below(7), e.options.largest_alignment));
        if (blocks.count() > 300) {
            blocks.free_all(random);
        }
    }
}

void random_order(const examination& e, memory_resource& r) {
    held_blocks blocks(r, e.options, 3, e.out);
    random_numbers random(e.options.seed + 2);
    churn(e, blocks, random);
    blocks.free_all(random);
}

void zero_bytes(const examination& e, memory_resource& r) {
    held_blocks blocks(r, e.options, 4, e.out);
    random_numbers random(e.options.seed + 3);
    for (int i = 0; i < 50; ++i) {
        blocks.take(0, 1);
        blocks.take(8, std::min(e.options.largest_alignment, std::size_t{8}));
        blocks.take(0, std::min(e.options.largest_alignment, std::size_t{64}));
    }
    blocks.free_all(random);
}

void impossible_sizes(const examination& e, memory_resource& r) {
    constexpr std::size_t half = SIZE_MAX / 2;
    held_blocks blocks(r, e.options, 5, e.out);
    const auto refuses = [&](std::size_t bytes, std::size_t alignment) {
        try {
            static_cast<void>(pmr_debug::detail::ask_upstream(r, bytes, alignment));
            e.out.add(error::impossible_granted, "gave memory for " + in_words(bytes, alignment));
        } catch (const std::bad_alloc&) {
            return;
        } catch (...) {
            e.out.add(error::wrong_exception,
                      "threw something else than std::bad_alloc for " + in_words(bytes, alignment));
        }
    };
    blocks.take(24, 8);
    for (const std::size_t bytes : {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 7, SIZE_MAX - 15, SIZE_MAX - 63, SIZE_MAX - 4095,
                                    SIZE_MAX - 65535, half + 2, half + 1, half}) {
        for (const std::size_t alignment : {std::size_t{1}, std::size_t{16}, std::size_t{4096}, half + 1}) {
            refuses(bytes, alignment);
        }
        blocks.take(24, 8);
    }
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{5000}}) {
        refuses(bytes, half + 1);
        blocks.take(24, 8);
    }
}

// ---- equality -------------------------------------------------------------------------------------------------------

/// Each frees what the other allocated, and both are used on.
void exchange(const examination& e, memory_resource& a, memory_resource& b) {
    held_blocks of_a(a, e.options, 6, e.out);
    held_blocks of_b(b, e.options, 7, e.out);
    for (const std::size_t bytes : {24U, 8U, 0U, 100U, 1000U, 5000U}) {
        for (held_blocks* const blocks : {&of_a, &of_b}) {
            blocks->take(std::min(bytes + std::size_t{0}, e.options.largest_block), 8);
            blocks->take(8, 8);
        }
    }
    while (of_a.count() > 1) {
        of_a.free_one(0, b);
        of_b.free_one(0, a);
        of_a.free_one(0);
        of_b.free_one(0);
    }
}

/// Two resources on upstreams of their own, or on one: if they are equal, they are interchangeable.
void equal_means_interchangeable(const examination& e, bool one_upstream) {
    conformance_findings found;
    found.begin(conformance_part::equality);
    bool equal = false;
    {
        recording_upstream first(found);
        recording_upstream second(found);
        const examination quiet{e.build, e.options, found};
        const auto a = built(quiet, first);
        const auto b = built(quiet, one_upstream ? first : second);
        equal = a != nullptr && b != nullptr && a->is_equal(*b);
        if (equal) {
            exchange(quiet, *a, *b);
        }
    }
    if (equal && !found.all().empty()) {
        e.out.add(error::not_interchangeable,
                  "two that are equal freed each other's blocks, and then: " + found.all().front().text);
    }
}

/// Who equals whom.
class equality_table {
public:
    explicit equality_table(const std::vector<memory_resource*>& all) : size_(all.size()) {
        for (const memory_resource* const a : all) {
            for (const memory_resource* const b : all) {
                equal_.push_back(a->is_equal(*b));
            }
        }
    }
    [[nodiscard]] bool operator()(std::size_t a, std::size_t b) const { return equal_[a * size_ + b]; }
    bool operator==(const equality_table&) const = default;

private:
    std::size_t size_;
    std::vector<bool> equal_;
};

void equality_laws(const examination& e) {
    recording_upstream first(e.out);
    recording_upstream second(e.out);
    const std::array mine{built(e, first), built(e, first), built(e, first), built(e, second)};
    if (std::find(mine.begin(), mine.end(), nullptr) != mine.end()) {
        return;
    }
    std::vector<memory_resource*> all;
    all.reserve(mine.size() + 3);
    for (const auto& r : mine) {
        all.push_back(r.get());
    }
    for (memory_resource* const other :
         {static_cast<memory_resource*>(&first), std::pmr::new_delete_resource(), std::pmr::null_memory_resource()}) {
        all.push_back(other);
    }

    const equality_table equal(all);
    for (std::size_t a = 0; a < mine.size(); ++a) {
        if (!equal(a, a)) {
            e.out.add(error::not_reflexive, "not equal to itself");
        }
        for (std::size_t b = 0; b < all.size(); ++b) {
            if (equal(a, b) != equal(b, a)) {
                e.out.add(error::not_symmetric, "a resource is equal to another one that is not equal to it");
            }
            for (std::size_t c = 0; c < all.size(); ++c) {
                if (equal(a, b) && equal(b, c) && !equal(a, c)) {
                    e.out.add(error::not_transitive, "one is equal to a second, that to a third, and not the first");
                }
            }
        }
    }

    {
        held_blocks of_first(*mine[0], e.options, 8, e.out);
        held_blocks of_last(*mine[3], e.options, 9, e.out);
        for (int i = 0; i < 20; ++i) {
            of_first.take(24, 8);
            of_last.take(40, 8);
        }
        if (!(equality_table(all) == equal)) {
            e.out.add(error::equality_changed, "who is equal to whom changed when memory was allocated");
        }
    }
    if (!(equality_table(all) == equal)) {
        e.out.add(error::equality_changed, "who is equal to whom changed after memory was allocated and freed");
    }
}

void equality(const examination& e) {
    equality_laws(e);
    equal_means_interchangeable(e, true);
    equal_means_interchangeable(e, false);
}

// ---- threads --------------------------------------------------------------------------------------------------------

/// Threads at work with blocks of their own; at last each frees what another one allocated.
void threads(const examination& e, memory_resource& r) {
    std::vector<std::unique_ptr<held_blocks>> blocks;
    for (unsigned i = 0; i < e.options.threads; ++i) {
        blocks.push_back(std::make_unique<held_blocks>(r, e.options, 100 + i, e.out));
    }
    const auto at_once = [&](const auto& work) {
        std::vector<std::thread> all;
        for (unsigned i = 0; i < e.options.threads; ++i) {
            all.emplace_back([&, i] { work(i); });
        }
        for (std::thread& thread : all) {
            thread.join();
        }
    };
    at_once([&](unsigned i) {
        random_numbers random(e.options.seed + 100 + i);
        churn(e, *blocks[i], random);
        for (int n = 0; n < 50; ++n) {
            blocks[i]->take(random.below(200), 8);
        }
    });
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        for (std::size_t other = i + 1; other < blocks.size(); ++other) {
            blocks[i]->expect_apart(*blocks[other]);
        }
    }
    at_once([&](unsigned i) {
        random_numbers random(e.options.seed + 200 + i);
        blocks[(i + 1) % e.options.threads]->free_all(random);
    });
}

// ---- an upstream that refuses ---------------------------------------------------------------------------------------

/// A workload under an upstream that refuses \p how_many calls. Returns: whether it came to that.
bool refused_after(const examination& e, std::size_t calls, std::size_t how_many) {
    recording_upstream upstream(e.out);
    upstream.refuse_after(calls, how_many);
    std::shared_ptr<memory_resource> r;
    try {
        r = e.build(upstream);
    } catch (const std::bad_alloc&) {
        return true;  // at construction: nothing may be left in the upstream
    } catch (...) {
        e.out.add(error::wrong_exception, "its constructor threw something else than std::bad_alloc");
        return false;
    }
    if (r == nullptr) {
        e.out.add(error::not_built, "the builder made nothing");
        return false;
    }
    held_blocks blocks(*r, e.options, 10, e.out);
    random_numbers random(e.options.seed + 10);
    std::size_t refusals = 0;
    for (const std::size_t bytes : {16U, 100U, 5000U, 16U, 40000U, 70000U, 8U, 100U}) {
        const std::size_t alignment = std::min(e.options.largest_alignment, std::size_t{16});
        refusals += blocks.try_take(std::min(bytes, e.options.largest_block), alignment) ? 0 : 1;
    }
    if (refusals > how_many && !e.options.may_refuse) {
        e.out.add(error::refused, "refused " + std::to_string(refusals) + " requests after the upstream refused " +
                                      std::to_string(how_many));
    }
    blocks.free_all(random);
    return upstream.refused();
}

void refusing_upstream(const examination& e) {
    constexpr std::size_t most_calls = 64;
    std::size_t after = 0;
    while (after < most_calls && refused_after(e, after, 1)) {
        refused_after(e, after, SIZE_MAX);
        ++after;
    }
    if (after == 0) {
        e.out.add(error::upstream_unused, "takes nothing from its upstream, so that there was nothing to refuse");
    }
}

void run(const examination& e, conformance_part part) {
    const auto with_one = [&](void (*ask)(const examination&, memory_resource&)) {
        recording_upstream upstream(e.out);
        if (const auto r = built(e, upstream)) {
            ask(e, *r);
        }
    };
    e.out.begin(part);
    switch (part) {
        case conformance_part::sizes_and_alignments: return with_one(sizes_and_alignments);
        case conformance_part::random_order: return with_one(random_order);
        case conformance_part::zero_bytes: return with_one(zero_bytes);
        case conformance_part::over_alignment: return with_one(over_alignment);
        case conformance_part::impossible_sizes: return with_one(impossible_sizes);
        case conformance_part::equality: return equality(e);
        case conformance_part::threads: return e.options.threads != 0 ? with_one(threads) : void();
        case conformance_part::refusing_upstream: return refusing_upstream(e);
    }
}

}  // namespace

}  // namespace detail

std::string_view to_string(conformance_part p) noexcept {
    constexpr std::array<std::string_view, conformance_part_count> names{
        "sizes_and_alignments", "random_order", "zero_bytes", "over_alignment",
        "impossible_sizes",     "equality",     "threads",    "refusing_upstream"};
    const auto i = static_cast<std::size_t>(p);
    return i < names.size() ? names[i] : "unknown";
}

std::string_view to_string(conformance_error e) noexcept {
    switch (e) {
        case conformance_error::not_built: return "not_built";
        case conformance_error::null_returned: return "null_returned";
        case conformance_error::misaligned: return "misaligned";
        case conformance_error::overlap: return "overlap";
        case conformance_error::contents_changed: return "contents_changed";
        case conformance_error::refused: return "refused";
        case conformance_error::impossible_granted: return "impossible_granted";
        case conformance_error::wrong_exception: return "wrong_exception";
        case conformance_error::not_reflexive: return "not_reflexive";
        case conformance_error::not_symmetric: return "not_symmetric";
        case conformance_error::not_transitive: return "not_transitive";
        case conformance_error::equality_changed: return "equality_changed";
        case conformance_error::not_interchangeable: return "not_interchangeable";
        case conformance_error::upstream_bad_request: return "upstream_bad_request";
        case conformance_error::upstream_mismatch: return "upstream_mismatch";
        case conformance_error::upstream_unknown: return "upstream_unknown";
        case conformance_error::upstream_double_free: return "upstream_double_free";
        case conformance_error::upstream_leak: return "upstream_leak";
        case conformance_error::upstream_write_after_free: return "upstream_write_after_free";
        case conformance_error::upstream_unused: return "upstream_unused";
    }
    return "unknown";
}

std::vector<conformance_finding> check_conformance(const resource_builder& build, const conformance_options& o) {
    detail::conformance_findings out;
    const detail::examination e{build, o, out};
    for (std::size_t i = 0; i < conformance_part_count; ++i) {
        if (const auto part = static_cast<conformance_part>(i); !o.skip.contains(part)) {
            detail::run(e, part);
        }
    }
    return out.all();
}

}  // namespace pmr_debug::testing
