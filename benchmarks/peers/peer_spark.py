"""Spark: `predict_batch_udf`, on two local cores; four tries for each task, as on a cluster.

https://spark.apache.org/docs/latest/api/python/reference/api/pyspark.ml.functions.predict_batch_udf.html,
https://spark.apache.org/docs/latest/sql-data-sources-binaryFile.html
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import functions
import numpy as np
import pandas as pd
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.functions import col
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType
from work import Result, Work

VECTOR = ArrayType(FloatType())

if not shutil.which("java"):
    raise ImportError("Spark needs Java 17: apt-get install default-jre-headless")


# user code: start
@contextlib.contextmanager
def started(work: Work) -> Iterator[SparkSession]:
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master("local[2,4]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "4g")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .getOrCreate()
    )
    try:
        yield spark
    finally:
        spark.stop()


# end


# user code: images (start, picture_vectors)
def images(work: Work, spark: SparkSession) -> Result:
    def make_predict() -> Callable[[Any], Any]:
        return lambda contents: functions.picture_vectors(
            map(io.BytesIO, contents), work.model, work.batch
        )

    encode = predict_batch_udf(make_predict, return_type=VECTOR, batch_size=work.chunk)
    pictures = spark.read.format("binaryFile").load(work.folder)
    found = pictures.select("path", encode("content").alias("vector")).toPandas()
    return {
        "names": found["path"].str.removeprefix("file:").to_numpy(str),
        "values": np.stack(found["vector"]),
    }


# end


# user code: table (start, probabilities)
def table(work: Work, spark: SparkSession) -> None:
    def make_predict() -> Callable[..., Any]:
        # Spark counts the parameters of this function: one for each column.
        def predict(
            n0: Any,
            n1: Any,
            n2: Any,
            n3: Any,
            n4: Any,
            n5: Any,
            n6: Any,
            n7: Any,
            city: Any,
            colour: Any,
            kind: Any,
        ) -> Any:
            columns = (n0, n1, n2, n3, n4, n5, n6, n7, city, colour, kind)
            frame = pd.DataFrame(dict(zip(functions.COLUMNS, columns, strict=True)))
            found = functions.probabilities(frame, work.model, work.batch)
            return {"p0": found["p0"].to_numpy(), "p1": found["p1"].to_numpy()}

        return predict

    kind = StructType([StructField("p0", FloatType()), StructField("p1", FloatType())])
    score = predict_batch_udf(make_predict, return_type=kind, batch_size=max(4096, work.batch))
    rows = spark.read.parquet(work.folder)
    found = rows.withColumn("found", score(*map(col, functions.COLUMNS)))
    found.select("id", "found.p0", "found.p1").write.mode("append").parquet(work.output)


# end


# user code: sentences (start, sentence_vectors)
def sentences(work: Work, spark: SparkSession) -> None:
    def make_predict() -> Callable[[Any], Any]:
        return lambda texts: functions.sentence_vectors(texts, work.model, work.tokens, work.batch)

    encode = predict_batch_udf(make_predict, return_type=VECTOR, batch_size=512)
    rows = spark.read.parquet(work.folder)
    found = rows.select("id", encode("text").alias("embedding"))
    found.write.mode("append").parquet(work.output)


# end


# user code: large (start, block_vectors)
def large(work: Work, spark: SparkSession) -> Result:
    def make_predict() -> Callable[[Any], Any]:
        def predict(contents: Any) -> Any:
            blocks = [np.load(io.BytesIO(content)) for content in contents]
            return np.stack(
                [functions.block_vectors(block, work.model).ravel() for block in blocks]
            )

        return predict

    encode = predict_batch_udf(make_predict, return_type=VECTOR, batch_size=1)
    blocks = spark.read.format("binaryFile").load(work.folder)
    found = blocks.select("path", encode("content").alias("vector")).toPandas()
    return {
        "names": found["path"].str.removeprefix("file:").to_numpy(str),
        "values": np.stack(found["vector"]),
    }


# end
