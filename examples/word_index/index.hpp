#pragma once

/// \file
/// An index of words: which word stands in which file on which line.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory_resource>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace demo {

struct posting {
    std::uint32_t file;
    std::uint32_t line;
};

/// Lets a `string_view` be looked up without making a string of it.
struct word_hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view word) const noexcept { return std::hash<std::string_view>{}(word); }
};

/// Where the parts of an index take their memory.
struct index_memory {
    std::pmr::memory_resource* dictionary;  ///< words and postings
    std::pmr::memory_resource* names;       ///< names of files
    std::pmr::memory_resource* text;        ///< the file being read
};

class word_index {
public:
    using posting_list = std::pmr::vector<posting>;
    using dictionary = std::pmr::unordered_map<std::pmr::string, posting_list, word_hash, std::equal_to<>>;
    using entry = dictionary::value_type;

    explicit word_index(const index_memory& memory);

    /// Returns: false if the file could not be read; then nothing is added.
    bool add_file(const std::string& path);

    /// Returns: the \p count words with most postings, most first.
    [[nodiscard]] std::pmr::vector<const entry*> most_frequent(std::size_t count) const;

    [[nodiscard]] const dictionary& words() const noexcept { return words_; }
    [[nodiscard]] std::size_t files() const noexcept { return names_.size(); }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
    [[nodiscard]] std::uint64_t postings() const noexcept { return postings_; }
    /// Depends on every word and posting: two runs with the same one did the same work.
    [[nodiscard]] std::uint64_t checksum() const noexcept;

private:
    void add_text(std::string_view text, std::uint32_t file);
    void add_word(std::string_view word, posting where);

    std::pmr::memory_resource* text_memory_;
    dictionary words_;
    std::pmr::vector<std::pmr::string> names_;
    std::uint64_t bytes_ = 0;
    std::uint64_t postings_ = 0;
};

}  // namespace demo
