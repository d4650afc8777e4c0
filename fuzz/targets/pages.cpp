// page_resource: also resized, guarded, unguarded and released, with fresh memory that must be zero.

#include "support/checked.hpp"
#include "support/target.hpp"

#include <pmr_debug/page_resource.hpp>

#include <algorithm>

namespace {

using namespace fuzz;
using pmr_debug::page_resource;

report_sink sink;

constexpr std::size_t page = 4096;

class page_session final : public checked_session {
public:
    page_session(subject_of<page_resource>& s, const knowledge& k, std::size_t limit, fuzz_program& program)
        : checked_session(s, k, nullptr, program, sink,
                          {.largest = std::size_t{1} << 16,
                           .largest_alignment = std::size_t{1} << 21,
                           .most_blocks = 200,
                           .most_operations = 3000,
                           .second_thread = true}),
          pages_(s.get()),
          limit_(limit) {}

private:
    static std::size_t whole(std::size_t bytes) { return (std::max<std::size_t>(bytes, 1) + page - 1) & ~(page - 1); }

    [[nodiscard]] std::size_t mapped() const {
        std::size_t sum = 0;
        for (const fuzz_block& b : blocks_) {
            sum += whole(b.bytes);
        }
        return sum;
    }
    bool expect_page_limit(std::size_t more, std::size_t bytes, std::size_t alignment) {
        const std::size_t now = limit_ != 0 ? mapped() : 0;
        if (limit_ == 0 || (now <= limit_ && more <= limit_ - now)) {
            return false;
        }
        expectation e = about_call(error_kind::limit_exceeded, nullptr, bytes, alignment);
        e.compare_limit = true;
        e.limit = limit_;
        e.in_use = now;
        expect(std::move(e));
        return true;
    }
    verdict expect_request(std::size_t bytes, std::size_t alignment) override {
        return expect_page_limit(whole(bytes), bytes, alignment) ? verdict::refused : verdict::granted;
    }
    void expect_impossible(std::size_t bytes, std::size_t alignment) override {
        if (bytes <= SIZE_MAX / 2) {
            expect_page_limit(whole(bytes), bytes, alignment);
        }
    }
    void expect_zero(const std::byte* from, const std::byte* to) const {
        if (!std::all_of(from, to, [](std::byte x) { return x == std::byte{}; })) {
            fail("memory that is not zero");
        }
    }
    void granted(const fuzz_block& b) override {
        expect_zero(b.p, b.p + b.bytes);
        checked_session::granted(b);
    }

    void special(fuzz_input& in) override {
        if (blocks_.empty()) {
            return;
        }
        const std::size_t index = in.below(blocks_.size());
        const std::size_t what = in.byte() % 4;
        if (what < 2) {
            resize(in, index);
        } else if (what == 2) {
            release(in, blocks_[index]);
        } else {
            guard(in, blocks_[index]);
        }
    }

    void resize(fuzz_input& in, std::size_t index) {
        fuzz_block b = blocks_[index];
        const std::size_t how = in.byte();
        const std::size_t bytes = how % 2 == 0 ? in.block_size(options_.largest) : b.bytes + how * 64;
        if (how % 8 == 7) {
            note("resize, with a wrong size,", b);
            expectation e = about(error_kind::size_mismatch);
            e.block = known(b, pmr_debug::block_state::live);
            expect(std::move(e));
            bool done = false;
            call([&] { done = pages_.resize(b.p, b.bytes + 1, bytes); });
            settle();
            if (done) {
                fail("resized a block by a wrong size");
            }
            return;
        }
        note("resize", b);
        note("  to", b.p, bytes, b.alignment);
        expect_contents(b);
        const bool over =
            whole(bytes) > whole(b.bytes) && expect_page_limit(whole(bytes) - whole(b.bytes), bytes, b.alignment);
        bool done = false;
        call([&] { done = pages_.resize(b.p, b.bytes, bytes); });
        settle();
        if (!done) {
            expect_contents(b);
            if (whole(bytes) <= whole(b.bytes)) {
                fail("did not make a block smaller");
            }
            return;
        }
        if (over) {
            fail("resized a block beyond the limit");
        }
        if (whole(bytes) > whole(b.bytes)) {
            expect_zero(b.p + whole(b.bytes), b.p + bytes);
        }
        live_bytes_ += bytes - b.bytes;
        total_bytes_ += bytes > b.bytes ? bytes - b.bytes : 0;
        peak_bytes_ = std::max(peak_bytes_, live_bytes_);
        b.bytes = bytes;
        blocks_[index] = b;
        write(b);
    }

    void release(fuzz_input& in, const fuzz_block& b) {
        const std::size_t from = in.below(b.bytes);
        const std::size_t bytes = in.below(b.bytes - from);
        note("release pages of", b);
        std::byte* const first = b.p + ((from + page - 1) & ~(page - 1));
        std::byte* const last = b.p + ((from + bytes) & ~(page - 1));
        bool done = false;
        call([&] { done = pages_.release(b.p + from, bytes); });
        settle();
        if (done != (first < last)) {
            fail("release() said the wrong thing");
        }
        if (done) {
            expect_zero(first, last);
        }
        write(b);
    }

    /// Guarded pages must not be touched, so the guard is undone within the operation, or the block freed.
    void guard(fuzz_input& in, const fuzz_block& b) {
        const std::size_t from = in.below(b.bytes);
        const std::size_t bytes = in.below(b.bytes - from);
        note("guard pages of", b);
        std::byte* const first = b.p + ((from + page - 1) & ~(page - 1));
        std::byte* const last = b.p + ((from + bytes) & ~(page - 1));
        const auto size = first < last ? static_cast<std::size_t>(last - first) : 0;
        bool done = false;
        call([&] { done = pages_.guard(b.p + from, bytes); });
        settle();
        if (done != (size != 0)) {
            fail("guard() said the wrong thing");
        }
        if (done && pages_.pages().guarded_bytes != size) {
            fail("guarded are " + std::to_string(pages_.pages().guarded_bytes) + " bytes, not " + std::to_string(size));
        }
        bool undone = false;
        call([&] { undone = pages_.unguard(b.p, whole(b.bytes)); });
        settle();
        if (!undone || pages_.pages().guarded_bytes != 0) {
            fail("the guard was not undone");
        }
        if (done) {
            expect_zero(first, last);
        }
        write(b);
        if (pages_.pages().mapped_bytes != mapped()) {
            fail("mapped are " + std::to_string(pages_.pages().mapped_bytes) + " bytes, not " +
                 std::to_string(mapped()));
        }
    }

    page_resource& pages_;
    std::size_t limit_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz_input in(data, size);
    const std::size_t odd = in.byte();
    const std::size_t limit = odd % 4 == 1 ? page * (1 + in.byte()) : 0;
    fuzz_program program("page_resource, limit " + std::to_string(limit));
    const knowledge k{.is = family::pages};
    subject_of<page_resource> s(page_resource::options{.name = "subject", .handler = &sink, .limit_bytes = limit});
    page_session session(s, k, limit, program);
    session.run(in);
    session.finish(in);
    return 0;
}
